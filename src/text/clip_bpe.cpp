#include "dalle/text/clip_bpe.h"

#include <zlib.h>

#include <algorithm>
#include <array>
#include <limits>
#include <unordered_map>

#include "dalle/core/error.h"
#include "dalle/core/hash.h"
#include "dalle/core/str.h"
#include "dalle/text/clip_caption.h"
#include "dalle/text/pretokenize.h"

namespace dalle::text {
namespace {

constexpr std::string_view kGzipMagic = "\x1F\x8B";
constexpr std::string_view kWordEnd = "</w>";
constexpr int32_t kNumBytes = 256;
constexpr int32_t kNoRank = std::numeric_limits<int32_t>::max();

[[noreturn]] void refuse_vocabulary(const std::string& expected, const std::string& got) {
  throw CheckpointError(Problem{.place = "CLIP vocabulary",
                                .expected = expected,
                                .got = got,
                                .hint = "scripts/clip_vocabulary.sh gets the published file"});
}

std::string unpack_gzip(const std::string& bytes) {
  constexpr size_t kMaxBytes = size_t{64} << 20;
  z_stream stream{};
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(bytes.size());
  if (inflateInit2(&stream, 16 + MAX_WBITS) != Z_OK) throw CheckpointError("CLIP vocabulary: zlib does not start");
  std::string out;
  std::array<char, 1 << 16> block;
  int result = Z_OK;
  while (result == Z_OK && out.size() <= kMaxBytes) {
    stream.next_out = reinterpret_cast<Bytef*>(block.data());
    stream.avail_out = static_cast<uInt>(block.size());
    result = inflate(&stream, Z_NO_FLUSH);
    out.append(block.data(), block.size() - stream.avail_out);
  }
  inflateEnd(&stream);
  if (result == Z_OK) refuse_vocabulary(str("at most ", kMaxBytes, " bytes"), "more");
  if (result != Z_STREAM_END) refuse_vocabulary("a whole gzip file", "a damaged one");
  return out;
}

/// How the file writes bytes: printable characters of Latin-1 as themselves, the others from U+0100 on. The order is that
/// of their ids.
struct ByteAlphabet {
  std::array<unsigned char, kNumBytes> byte_of_id;
  std::array<int32_t, kNumBytes> id_of_byte;
  std::array<std::string, kNumBytes> text_of_id;

  ByteAlphabet() {
    const auto is_itself = [](int b) { return (b >= '!' && b <= '~') || (b >= 0xA1 && b <= 0xFF && b != 0xAD); };
    int32_t id = 0;
    for (const bool itself : {true, false}) {
      for (int b = 0; b < kNumBytes; ++b) {
        if (is_itself(b) != itself) continue;
        byte_of_id[static_cast<size_t>(id)] = static_cast<unsigned char>(b);
        id_of_byte[static_cast<size_t>(b)] = id;
        text_of_id[static_cast<size_t>(id)] = to_utf8(static_cast<char32_t>(itself ? b : 0x100 + others_++));
        ++id;
      }
    }
  }

 private:
  int others_ = 0;
};

uint64_t pair_key(int32_t left, int32_t right) {
  return static_cast<uint64_t>(static_cast<uint32_t>(left)) << 32 | static_cast<uint32_t>(right);
}

/// Calls `take(line, number)` with each line after the first, at most kMaxMerges of them.
template <class Take>
void for_merge_lines(std::string_view text, Take take) {
  size_t at = text.find('\n');
  for (int64_t number = 0; number < ClipBpe::kMaxMerges && at != std::string_view::npos && at + 1 < text.size();
       ++number) {
    const size_t end = std::min(text.find('\n', at + 1), text.size());
    take(text.substr(at + 1, end - at - 1), number);
    at = end == text.size() ? std::string_view::npos : end;
  }
}

}  // namespace

struct ClipBpe::Model {
  std::string file;
  std::string identity;
  ByteAlphabet alphabet;
  std::vector<std::string> pieces;                // by id, in the file's notation
  std::vector<std::string> bytes;                 // by id: what the piece spells; the end of a word is a space
  std::unordered_map<uint64_t, int32_t> rank_of;  // of a pair of ids; the merged piece's id is 2 * kNumBytes + rank

  explicit Model(std::string given);
  int32_t rank(int32_t left, int32_t right) const {
    const auto found = rank_of.find(pair_key(left, right));
    return found == rank_of.end() ? kNoRank : found->second;
  }
  void append_word(std::string_view word, double dropout, RandomStream* stream, std::vector<int64_t>& ids) const;
};

ClipBpe::Model::Model(std::string given) : file(std::move(given)) {
  const std::string text = file.starts_with(kGzipMagic) ? unpack_gzip(file) : file;
  if (text.substr(0, text.find('\n')).find("#version") == std::string::npos) {
    refuse_vocabulary("a first line with #version", "another");
  }
  std::unordered_map<std::string, int32_t> id_of;
  const auto add = [&](const std::string& piece, const std::string& spelled) {
    id_of.emplace(piece, static_cast<int32_t>(pieces.size()));
    pieces.push_back(piece);
    bytes.push_back(spelled);
  };
  for (const bool ends : {false, true}) {
    for (size_t id = 0; id < kNumBytes; ++id) {
      add(str(alphabet.text_of_id[id], ends ? kWordEnd : ""), str(alphabet.byte_of_id[id], ends ? " " : ""));
    }
  }
  Hasher hasher;
  for_merge_lines(text, [&](std::string_view line, int64_t number) {
    const auto id = [&](std::string_view piece) {
      const auto found = id_of.find(std::string(piece));
      if (found == id_of.end()) {
        refuse_vocabulary(str("two pieces of earlier lines in line ", number + 2), str("'", line.substr(0, 60), "'"));
      }
      return found->second;
    };
    const size_t space = std::min(line.find(' '), line.size());
    const int32_t left = id(line.substr(0, space)), right = id(line.substr(std::min(space + 1, line.size())));
    rank_of.emplace(pair_key(left, right), static_cast<int32_t>(number));
    add(pieces[static_cast<size_t>(left)] + pieces[static_cast<size_t>(right)],
        bytes[static_cast<size_t>(left)] + bytes[static_cast<size_t>(right)]);
    hasher.update(line);
    hasher.update("\n");
  });
  identity = hasher.hex();
}

// All occurrences of the pair of the lowest rank are merged in one pass, as published.
void ClipBpe::Model::append_word(std::string_view word, double dropout, RandomStream* stream,
                                 std::vector<int64_t>& ids) const {
  std::vector<int32_t> symbols;
  for (const char c : word) symbols.push_back(alphabet.id_of_byte[static_cast<unsigned char>(c)]);
  symbols.back() += kNumBytes;
  std::vector<int32_t> ranks(symbols.size() - 1), kept;  // of each symbol with the next
  for (size_t i = 0; i < ranks.size(); ++i) ranks[i] = rank(symbols[i], symbols[i + 1]);
  while (symbols.size() > 1) {
    kept = ranks;
    if (dropout > 0) {
      for (int32_t& r : kept) {
        if (r != kNoRank && stream->uniform() < dropout) r = kNoRank;
      }
    }
    const int32_t lowest = *std::min_element(kept.begin(), kept.end());
    if (lowest == kNoRank) break;
    size_t to = 0;
    for (size_t i = 0; i < symbols.size(); ++i, ++to) {
      const bool merges = i < kept.size() && kept[i] == lowest;
      symbols[to] = merges ? 2 * kNumBytes + lowest : symbols[i];
      if (merges) ++i;
    }
    symbols.resize(to);
    ranks.resize(to - 1);
    for (size_t i = 0; i < ranks.size(); ++i) ranks[i] = rank(symbols[i], symbols[i + 1]);
  }
  ids.insert(ids.end(), symbols.begin(), symbols.end());
}

bool ClipBpe::is_vocabulary(std::string_view bytes) {
  return bytes.starts_with(kGzipMagic) ||
         bytes.substr(0, std::min<size_t>(bytes.find('\n'), 200)).find("#version") != std::string_view::npos;
}

ClipBpe ClipBpe::from_bytes(std::string bytes) { return ClipBpe(std::make_shared<const Model>(std::move(bytes))); }

std::vector<int64_t> ClipBpe::encode(std::string_view caption) const { return encode(caption, 0, {}); }

std::vector<int64_t> ClipBpe::encode(std::string_view caption, double dropout, RandomKey key) const {
  RandomStream stream(key);
  std::vector<int64_t> ids;
  for (const auto& word : split_clip_words(clean_clip_caption(caption))) {
    model_->append_word(word, dropout, &stream, ids);
  }
  return ids;
}

std::string ClipBpe::decode(std::span<const int64_t> ids) const {
  std::string out;
  for (const int64_t id : ids) {
    if (id >= 0 && id < vocab_size()) out += model_->bytes[static_cast<size_t>(id)];
  }
  if (out.ends_with(' ')) out.pop_back();
  return replace_invalid_utf8(out);
}

int64_t ClipBpe::vocab_size() const { return static_cast<int64_t>(model_->pieces.size()); }

const std::string& ClipBpe::piece(int64_t id) const {
  if (id < 0 || id >= vocab_size()) {
    throw DataError(Problem{.place = "token id", .expected = str("0 to ", vocab_size() - 1), .got = str(id)});
  }
  return model_->pieces[static_cast<size_t>(id)];
}

const std::string& ClipBpe::file_bytes() const { return model_->file; }
const std::string& ClipBpe::identity() const { return model_->identity; }

}  // namespace dalle::text

#include "dalle/text/tokenizer.h"

#include <array>
#include <bit>
#include <queue>
#include <unordered_map>

#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/core/hash.h"
#include "dalle/core/str.h"
#include "dalle/text/pretokenize.h"
#include "dalle/text/sentencepiece_model.h"

namespace dalle::text {

struct Tokenizer::Model {
  std::string bytes;
  SentencePieceModel content;
  std::unordered_map<std::string_view, int64_t> ids;  // normal pieces; views into content.pieces
  std::array<int64_t, 256> byte_ids{};                // -1 where the model has no such piece
  int64_t unknown_id = 0;
  std::string identity;
};

namespace {

constexpr std::string_view kSpacePiece = "\xE2\x96\x81";   // U+2581
constexpr std::string_view kUnknownText = "\xE2\x81\x87";  // U+2047

[[noreturn]] void refuse(const std::string& expected, const std::string& got) {
  throw CheckpointError(
      Problem{.place = "tokenizer model", .expected = expected, .got = got, .hint = "make one with train-tokenizer"});
}

void check_supported(const SentencePieceModel& content) {
  if (!content.is_bpe) refuse("a BPE model", "another model type");
  if (!content.normalizer_rules.empty()) {
    refuse("the identity normaliser", str("normaliser '", content.normalizer_name, "'"));
  }
  if (content.add_dummy_prefix || content.remove_extra_whitespaces || !content.escape_whitespaces) {
    refuse("add_dummy_prefix=false, remove_extra_whitespaces=false, escape_whitespaces=true", "other settings");
  }
}

/// The byte that a piece "<0xHH>" stands for, or -1.
int byte_of_piece(const std::string& text) {
  if (text.size() != 6 || text.compare(0, 3, "<0x") != 0 || text[5] != '>') return -1;
  const auto digit = [](char c) { return c >= '0' && c <= '9' ? c - '0' : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1; };
  const int high = digit(text[3]);
  const int low = digit(text[4]);
  return high < 0 || low < 0 ? -1 : 16 * high + low;
}

void append_with_spaces(std::string_view piece, std::string& out) {
  for (size_t offset = 0; offset < piece.size();) {
    const bool space = piece.substr(offset, kSpacePiece.size()) == kSpacePiece;
    out += space ? ' ' : piece[offset];
    offset += space ? kSpacePiece.size() : 1;
  }
}

std::string hash_model(const SentencePieceModel& content) {
  Hasher hasher;
  const auto add = [&](std::string_view text) {
    hasher.update(str(text.size(), ":"));
    hasher.update(text);
  };
  for (const auto& piece : content.pieces) {
    add(piece.text);
    add(str(std::bit_cast<uint32_t>(piece.score), " ", static_cast<int>(piece.type)));
  }
  add(content.normalizer_rules);
  add(str(content.add_dummy_prefix, content.remove_extra_whitespaces, content.escape_whitespaces));
  return hasher.hex();
}

/// A symbol of a run while its neighbours merge: a doubly linked list over views into the run.
struct Symbol {
  std::string_view text;
  int previous;
  int next;
};

struct Candidate {
  float score;
  int left;
  int right;
  size_t size;  // of the merged text: a candidate whose symbols have changed since is stale
  bool operator<(const Candidate& other) const {
    return score < other.score || (score == other.score && left > other.left);
  }
};

std::vector<Symbol> split_characters(std::string_view run) {
  std::vector<Symbol> symbols;
  for (size_t offset = 0; offset < run.size();) {
    size_t length = 1;
    while (offset + length < run.size() && (static_cast<unsigned char>(run[offset + length]) & 0xC0) == 0x80) ++length;
    const int index = static_cast<int>(symbols.size());
    symbols.push_back({run.substr(offset, length), index - 1, index + 1});
    offset += length;
  }
  if (!symbols.empty()) symbols.back().next = -1;
  return symbols;
}

}  // namespace

Tokenizer Tokenizer::load(const std::filesystem::path& path) {
  if (!std::filesystem::exists(path)) {
    throw ConfigError(Problem{.place = path.string(),
                              .expected = "a tokenizer model",
                              .got = "no such file",
                              .hint = "make one with train-tokenizer"});
  }
  return from_bytes(read_file(path));
}

Tokenizer Tokenizer::from_bytes(std::string bytes) {
  auto model = std::make_shared<Model>();
  model->bytes = std::move(bytes);
  model->content = parse_sentencepiece_model(model->bytes);
  check_supported(model->content);
  model->byte_ids.fill(-1);
  bool has_unknown = false;
  const auto& pieces = model->content.pieces;
  for (size_t i = 0; i < pieces.size(); ++i) {
    const auto id = static_cast<int64_t>(i);
    switch (pieces[i].type) {
      case PieceType::kNormal:
        model->ids.emplace(pieces[i].text, id);
        break;
      case PieceType::kUnknown:
        model->unknown_id = id, has_unknown = true;
        break;
      case PieceType::kControl:
        break;
      case PieceType::kByte: {
        const int byte = byte_of_piece(pieces[i].text);
        if (byte < 0) refuse("byte pieces <0x00> to <0xFF>", str("'", pieces[i].text, "'"));
        model->byte_ids[static_cast<size_t>(byte)] = id;
        break;
      }
      default:
        refuse("no user-defined or unused pieces", str("'", pieces[i].text, "'"));
    }
  }
  if (!has_unknown) refuse("an <unk> piece", "none");
  model->identity = hash_model(model->content);
  return Tokenizer(std::move(model));
}

std::vector<int64_t> Tokenizer::encode(std::string_view caption) const { return encode(caption, 0, {}); }

std::vector<int64_t> Tokenizer::encode(std::string_view caption, double dropout, RandomKey key) const {
  const std::string text = normalize_caption(caption);
  RandomStream stream(key);
  std::vector<int64_t> ids;
  for (const auto piece : split_pieces(text)) encode_run(piece, dropout, dropout > 0 ? &stream : nullptr, ids);
  return ids;
}

void Tokenizer::encode_run(std::string_view run, double dropout, RandomStream* stream,
                           std::vector<int64_t>& ids) const {
  auto symbols = split_characters(run);
  std::priority_queue<Candidate> queue;
  const auto propose = [&](int left, int right) {
    if (left < 0 || right < 0) return;
    const auto& first = symbols[static_cast<size_t>(left)].text;
    const std::string_view merged(first.data(), first.size() + symbols[static_cast<size_t>(right)].text.size());
    const auto found = model_->ids.find(merged);
    if (found == model_->ids.end()) return;
    queue.push({model_->content.pieces[static_cast<size_t>(found->second)].score, left, right, merged.size()});
  };
  for (int i = 1; i < static_cast<int>(symbols.size()); ++i) propose(i - 1, i);
  while (!queue.empty()) {
    const Candidate best = queue.top();
    queue.pop();
    auto& left = symbols[static_cast<size_t>(best.left)];
    auto& right = symbols[static_cast<size_t>(best.right)];
    if (left.text.empty() || right.text.empty() || left.text.size() + right.text.size() != best.size) continue;
    if (stream != nullptr && stream->uniform() < dropout) continue;
    left.text = std::string_view(left.text.data(), best.size);
    right.text = {};
    left.next = right.next;
    if (right.next >= 0) symbols[static_cast<size_t>(right.next)].previous = best.left;
    propose(left.previous, best.left);
    propose(best.left, left.next);
  }
  for (const auto& symbol : symbols) {
    if (!symbol.text.empty()) append_symbol(symbol.text, ids);
  }
}

void Tokenizer::append_symbol(std::string_view symbol, std::vector<int64_t>& ids) const {
  // A caption's own U+2581 must not be read back as a space: it goes to bytes.
  const auto found = symbol == kSpacePiece ? model_->ids.end() : model_->ids.find(symbol == " " ? kSpacePiece : symbol);
  if (found != model_->ids.end()) {
    ids.push_back(found->second);
    return;
  }
  for (const char c : symbol) {
    if (model_->byte_ids[static_cast<unsigned char>(c)] < 0) {
      ids.push_back(model_->unknown_id);
      return;
    }
  }
  for (const char c : symbol) ids.push_back(model_->byte_ids[static_cast<unsigned char>(c)]);
}

std::string Tokenizer::decode(std::span<const int64_t> ids) const {
  std::string out;
  for (const int64_t id : ids) {
    if (id < 0) continue;
    if (id >= vocab_size()) {
      throw DataError(Problem{.place = "token ids", .expected = str("ids below ", vocab_size()), .got = str(id)});
    }
    const auto& piece = model_->content.pieces[static_cast<size_t>(id)];
    switch (piece.type) {
      case PieceType::kByte:
        out += static_cast<char>(byte_of_piece(piece.text));
        break;
      case PieceType::kUnknown:
        out += kUnknownText;
        break;
      case PieceType::kControl:
        break;
      default:
        append_with_spaces(piece.text, out);
    }
  }
  return replace_invalid_utf8(out);
}

int64_t Tokenizer::vocab_size() const { return static_cast<int64_t>(model_->content.pieces.size()); }

std::string Tokenizer::piece(int64_t id) const {
  if (id < 0 || id >= vocab_size()) {
    throw DataError(Problem{.place = "token id", .expected = str("0 to ", vocab_size() - 1), .got = str(id)});
  }
  return model_->content.pieces[static_cast<size_t>(id)].text;
}

const std::string& Tokenizer::model_bytes() const { return model_->bytes; }

std::string Tokenizer::identity() const { return model_->identity; }

}  // namespace dalle::text

#include "dalle/text/tokenizer.h"

#include <algorithm>
#include <array>
#include <bit>
#include <optional>

#include "bpe_merge.h"
#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/core/hash.h"
#include "dalle/core/str.h"
#include "dalle/text/pretokenize.h"
#include "dalle/text/sentencepiece_model.h"

namespace dalle::text {
namespace {

constexpr char32_t kSpaceMark = 0x2581;                    // stands for a space in SentencePiece's pieces
constexpr std::string_view kSpacePiece = "\xE2\x96\x81";   // the same as UTF-8
constexpr std::string_view kUnknownText = "\xE2\x81\x87";  // U+2047

}  // namespace

struct Tokenizer::Model {
  std::string bytes;
  SentencePieceModel content;
  MergeTable merges;
  std::array<int64_t, 256> byte_ids;  // -1 where the model has no such piece
  int64_t unknown_id;
  std::string identity;

  /// A caption's own U+2581 must not be read back as a space: it has no symbol and goes to bytes.
  int32_t symbol_of(char32_t character) const {
    if (character == kSpaceMark) return MergeTable::kNoSymbol;
    return merges.symbol_of(character == U' ' ? kSpaceMark : character);
  }

  /// Of a character that is no piece: its bytes, or <unk> where the model lacks one of them.
  void append_bytes(std::string_view character, std::vector<int64_t>& ids) const {
    const auto id_of = [this](char c) { return byte_ids[static_cast<unsigned char>(c)]; };
    if (std::any_of(character.begin(), character.end(), [&](char c) { return id_of(c) < 0; })) {
      ids.push_back(unknown_id);
    } else {
      for (const char c : character) ids.push_back(id_of(c));
    }
  }
};

namespace {

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

/// Other multi-character pieces could never come up here, while SentencePiece would use them.
void check_piece_is_of_letters(const std::string& text) {
  const auto points = to_code_points(text);
  const auto joins = [](char32_t point) { return is_letter(point) || is_mark(point); };
  if (points.size() > 1 && !std::all_of(points.begin(), points.end(), joins)) {
    refuse("pieces of one character or of letters alone", str("'", text, "'"));
  }
}

}  // namespace

Tokenizer Tokenizer::load(const std::filesystem::path& path) {
  if (!std::filesystem::exists(path)) {
    throw ConfigError(Problem{.place = path.string(),
                              .expected = "a tokenizer model",
                              .got = "no such file",
                              .hint = "make one with train-tokenizer"});
  }
  try {
    return from_bytes(read_file(path));
  } catch (const CheckpointError& error) {
    throw CheckpointError(str(path.string(), ": ", error.what()));
  }
}

Tokenizer Tokenizer::from_bytes(std::string bytes) {
  auto content = parse_sentencepiece_model(bytes);
  check_supported(content);
  std::array<int64_t, 256> byte_ids{};
  byte_ids.fill(-1);
  std::optional<int64_t> unknown_id;
  for (size_t i = 0; i < content.pieces.size(); ++i) {
    const auto& piece = content.pieces[i];
    switch (piece.type) {
      case PieceType::kNormal:
        check_piece_is_of_letters(piece.text);
        break;
      case PieceType::kUnknown:
        unknown_id = static_cast<int64_t>(i);
        break;
      case PieceType::kControl:
        break;
      case PieceType::kByte: {
        const int byte = byte_of_piece(piece.text);
        if (byte < 0) refuse("byte pieces <0x00> to <0xFF>", str("'", piece.text, "'"));
        byte_ids[static_cast<size_t>(byte)] = static_cast<int64_t>(i);
        break;
      }
      default:
        refuse("no user-defined or unused pieces", str("'", piece.text, "'"));
    }
  }
  if (!unknown_id) refuse("an <unk> piece", "none");
  MergeTable merges(content);
  std::string identity = hash_model(content);
  return Tokenizer(std::make_shared<const Model>(Model{.bytes = std::move(bytes),
                                                       .content = std::move(content),
                                                       .merges = std::move(merges),
                                                       .byte_ids = byte_ids,
                                                       .unknown_id = *unknown_id,
                                                       .identity = std::move(identity)}));
}

std::vector<int64_t> Tokenizer::encode(std::string_view caption) const { return encode(caption, 0, {}); }

std::vector<int64_t> Tokenizer::encode(std::string_view caption, double dropout, RandomKey key) const {
  const std::string text = normalize_caption(caption);
  RandomStream stream(key);
  std::vector<int64_t> ids;
  ids.reserve(text.size());
  std::vector<Symbol> symbols;
  std::vector<int32_t> scratch;
  for (size_t offset = 0; offset < text.size();) {
    const size_t end = offset + first_piece(std::string_view(text).substr(offset)).size();
    symbols.clear();
    while (offset < end) {
      const auto [character, length] = code_point_at(text, offset);
      symbols.push_back({model_->symbol_of(character), static_cast<uint32_t>(offset)});
      offset += length;
    }
    merge_neighbours(model_->merges, dropout, dropout > 0 ? &stream : nullptr, symbols, scratch);
    for (const Symbol symbol : symbols) {
      if (model_->merges.is_piece(symbol.id)) {
        ids.push_back(symbol.id);
      } else {
        model_->append_bytes(std::string_view(text).substr(symbol.offset, code_point_at(text, symbol.offset).length),
                             ids);
      }
    }
  }
  return ids;
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

bool Tokenizer::is_byte(int64_t id) const {
  return id >= 0 && id < vocab_size() && model_->content.pieces[static_cast<size_t>(id)].type == PieceType::kByte;
}

int64_t Tokenizer::unknown_id() const { return model_->unknown_id; }

const std::string& Tokenizer::model_bytes() const { return model_->bytes; }

std::string Tokenizer::identity() const { return model_->identity; }

}  // namespace dalle::text

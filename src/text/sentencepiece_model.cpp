#include "dalle/text/sentencepiece_model.h"

#include <bit>
#include <cstdint>
#include <cstring>

#include "dalle/core/error.h"
#include "dalle/core/str.h"

namespace dalle::text {
namespace {

[[noreturn]] void fail(const std::string& got) {
  throw CheckpointError(Problem{.place = "tokenizer model",
                                .expected = "a SentencePiece model file",
                                .got = got,
                                .hint = "make one with train-tokenizer"});
}

/// One field of a protobuf message: a number (varint or fixed) or a byte range.
struct WireField {
  uint64_t number = 0;
  uint64_t wire_type = 0;
  uint64_t value = 0;
  std::string_view bytes;
};

class WireReader {
 public:
  explicit WireReader(std::string_view bytes) : bytes_(bytes) {}

  bool next(WireField& field) {
    if (offset_ == bytes_.size()) return false;
    const uint64_t tag = varint();
    field = WireField{.number = tag >> 3, .wire_type = tag & 7};
    switch (field.wire_type) {
      case 0:
        field.value = varint();
        break;
      case 1:
        field.value = fixed(8);
        break;
      case 2:
        field.bytes = take(varint());
        break;
      case 5:
        field.value = fixed(4);
        break;
      default:
        fail(str("wire type ", field.wire_type));
    }
    return true;
  }

 private:
  std::string_view take(uint64_t size) {
    if (size > bytes_.size() - offset_) fail("a file that ends inside a field");
    const auto view = bytes_.substr(offset_, size);
    offset_ += size;
    return view;
  }
  uint64_t varint() {
    uint64_t value = 0;
    for (int shift = 0; shift < 64; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(1)[0]);
      value |= static_cast<uint64_t>(byte & 0x7F) << shift;
      if (byte < 0x80) return value;
    }
    fail("a number longer than 64 bits");
  }
  uint64_t fixed(size_t size) {
    uint64_t value = 0;
    const auto view = take(size);
    for (size_t i = 0; i < size; ++i) value |= static_cast<uint64_t>(static_cast<unsigned char>(view[i])) << (8 * i);
    return value;
  }

  std::string_view bytes_;
  size_t offset_ = 0;
};

SentencePieceModel::Piece parse_piece(std::string_view bytes) {
  SentencePieceModel::Piece piece;
  WireReader reader(bytes);
  for (WireField field; reader.next(field);) {
    if (field.number == 1 && field.wire_type == 2) piece.text = std::string(field.bytes);
    if (field.number == 2 && field.wire_type == 5)
      piece.score = std::bit_cast<float>(static_cast<uint32_t>(field.value));
    if (field.number == 3 && field.wire_type == 0) {
      if (field.value < 1 || field.value > 6) fail(str("piece type ", field.value));
      piece.type = static_cast<PieceType>(field.value);
    }
  }
  return piece;
}

void parse_normalizer(std::string_view bytes, SentencePieceModel& model) {
  WireReader reader(bytes);
  for (WireField field; reader.next(field);) {
    if (field.number == 1 && field.wire_type == 2) model.normalizer_name = std::string(field.bytes);
    if (field.number == 2 && field.wire_type == 2) model.normalizer_rules = std::string(field.bytes);
    if (field.number == 3 && field.wire_type == 0) model.add_dummy_prefix = field.value != 0;
    if (field.number == 4 && field.wire_type == 0) model.remove_extra_whitespaces = field.value != 0;
    if (field.number == 5 && field.wire_type == 0) model.escape_whitespaces = field.value != 0;
  }
}

}  // namespace

SentencePieceModel parse_sentencepiece_model(std::string_view bytes) {
  constexpr uint64_t kBpe = 2;
  SentencePieceModel model;
  WireReader reader(bytes);
  for (WireField field; reader.next(field);) {
    if (field.number == 1 && field.wire_type == 2) model.pieces.push_back(parse_piece(field.bytes));
    if (field.number == 2 && field.wire_type == 2) {
      WireReader trainer(field.bytes);
      for (WireField inner; trainer.next(inner);) {
        if (inner.number == 3 && inner.wire_type == 0) model.is_bpe = inner.value == kBpe;
      }
    }
    if (field.number == 3 && field.wire_type == 2) parse_normalizer(field.bytes, model);
  }
  if (model.pieces.empty()) fail("a file without pieces");
  return model;
}

}  // namespace dalle::text

// The content of a SentencePiece model file, read from its protobuf bytes by a bounds-checked reader of our own: the
// encoder needs only pieces, scores and the normaliser's settings, and a model file may come from anywhere.
// Format: docs/tokenizer.md.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace dalle::text {

/// Numbers as in SentencePiece's ModelProto.
enum class PieceType { kNormal = 1, kUnknown = 2, kControl = 3, kUserDefined = 4, kUnused = 5, kByte = 6 };

struct SentencePieceModel {
  struct Piece {
    std::string text;
    float score = 0;
    PieceType type = PieceType::kNormal;
  };
  std::vector<Piece> pieces;  // the index is the id
  bool is_bpe = false;
  std::string normalizer_name;
  std::string normalizer_rules;  // compiled character map; empty for the identity
  bool add_dummy_prefix = true;
  bool remove_extra_whitespaces = true;
  bool escape_whitespaces = true;
};

/// Throws CheckpointError where the bytes are not a whole SentencePiece model.
SentencePieceModel parse_sentencepiece_model(std::string_view bytes);

}  // namespace dalle::text

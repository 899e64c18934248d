// Byte-pair encoding of captions with a SentencePiece BPE model (paper 2.2: vocabulary 16,384, lower-cased captions,
// 10 % BPE dropout in training).
// The merge loop is ours: SentencePiece cannot reset the seed of its dropout per call, so its training ids would depend
// on what was encoded before. Without dropout the ids equal SentencePiece's own on the normalised caption.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "dalle/core/random.h"

namespace dalle::text {

/// Immutable and cheap to copy; encode and decode may be called from many threads.
class Tokenizer {
 public:
  /// Throws ConfigError where the file does not exist, CheckpointError where it is damaged or not a BPE model with the
  /// identity normaliser whose longer pieces are of letters alone (others would give ids unlike SentencePiece's).
  static Tokenizer load(const std::filesystem::path& path);
  static Tokenizer from_bytes(std::string model);

  /// Ids of the normalised caption: within each letter run the pair whose piece has the highest score is merged first,
  /// the leftmost on ties. Characters without a piece become their UTF-8 bytes' pieces. Throws DataError where the
  /// caption is not UTF-8.
  std::vector<int64_t> encode(std::string_view caption) const;

  /// The same with BPE dropout (Provilkov et al. 2019): each candidate merge is skipped with probability `dropout`.
  /// A pure function of caption, dropout and key.
  std::vector<int64_t> encode(std::string_view caption, double dropout, RandomKey key) const;

  /// The text of the ids; decode(encode(x)) == normalize_caption(x) for every x where the model has byte pieces.
  /// Negative ids (padding) and control pieces give nothing, byte sequences that are not UTF-8 give U+FFFD.
  std::string decode(std::span<const int64_t> ids) const;

  int64_t vocab_size() const;
  /// The piece as SentencePiece writes it ("▁" is a space, "<0x41>" a byte).
  std::string piece(int64_t id) const;
  /// True for the piece of a byte.
  bool is_byte(int64_t id) const;
  /// Id of a character that has neither a piece nor byte pieces.
  int64_t unknown_id() const;
  /// The model file, byte for byte.
  const std::string& model_bytes() const;
  /// Hash over pieces, scores, types and normaliser, not over training metadata: 32 hexadecimal digits.
  std::string identity() const;

 private:
  struct Model;
  explicit Tokenizer(std::shared_ptr<const Model> model) : model_(std::move(model)) {}

  std::shared_ptr<const Model> model_;
};

}  // namespace dalle::text

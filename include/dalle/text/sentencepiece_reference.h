// SentencePiece's own encoder on a tokenizer's model: what our ids are compared with, and timed beside.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace dalle::text {

class SentencePieceReference {
 public:
  /// Throws CheckpointError where SentencePiece does not take the model.
  explicit SentencePieceReference(const std::string& model_bytes);
  ~SentencePieceReference();
  SentencePieceReference(SentencePieceReference&&) noexcept;

  /// SentencePiece's ids of the normalised caption, without dropout. Throws DataError where the caption is not UTF-8.
  std::vector<int64_t> encode(std::string_view caption) const;

 private:
  struct Processor;
  std::unique_ptr<Processor> processor_;
};

}  // namespace dalle::text

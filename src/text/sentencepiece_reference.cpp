#include "dalle/text/sentencepiece_reference.h"

#include <sentencepiece_processor.h>

#include "dalle/core/error.h"
#include "dalle/text/pretokenize.h"

namespace dalle::text {

struct SentencePieceReference::Processor {
  sentencepiece::SentencePieceProcessor library;
};

SentencePieceReference::SentencePieceReference(const std::string& model_bytes)
    : processor_(std::make_unique<Processor>()) {
  const auto status = processor_->library.LoadFromSerializedProto(model_bytes);
  if (!status.ok()) {
    throw CheckpointError(Problem{"tokenizer model", "a model that SentencePiece reads", status.ToString(),
                                  "make one with train-tokenizer"});
  }
}

SentencePieceReference::~SentencePieceReference() = default;
SentencePieceReference::SentencePieceReference(SentencePieceReference&&) noexcept = default;

std::vector<int64_t> SentencePieceReference::encode(std::string_view caption) const {
  std::vector<int> ids;
  const auto status = processor_->library.Encode(normalize_caption(caption), &ids);
  if (!status.ok()) throw DataError("SentencePiece could not encode a caption: " + status.ToString());
  return {ids.begin(), ids.end()};
}

}  // namespace dalle::text

#include "dalle/text/caption_encoder.h"

#include <c10/util/Exception.h>

#include <utility>

namespace dalle::text {

CaptionEncoder::CaptionEncoder(Tokenizer tokenizer, int64_t length, double dropout)
    : tokenizer_(std::move(tokenizer)), length_(length), dropout_(dropout) {
  TORCH_CHECK_VALUE(length >= 1, "[caption encoder] length must be at least 1, got ", length);
  TORCH_CHECK_VALUE(dropout >= 0 && dropout <= 1, "[caption encoder] dropout must be in [0, 1], got ", dropout);
}

EncodedCaption CaptionEncoder::encode(std::string_view caption) const { return fit(tokenizer_.encode(caption)); }

EncodedCaption CaptionEncoder::encode(std::string_view caption, RandomKey key) const {
  return fit(tokenizer_.encode(caption, dropout_, key));
}

EncodedCaption CaptionEncoder::fit(std::vector<int64_t> ids) const {
  EncodedCaption encoded{.truncated = static_cast<int64_t>(ids.size()) > length_};
  ids.resize(static_cast<size_t>(length_), kPadToken);
  encoded.ids = std::move(ids);
  return encoded;
}

}  // namespace dalle::text

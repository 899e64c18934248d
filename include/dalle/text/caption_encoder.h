// Captions as fixed rows of piece ids, as the models take them.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

#include "dalle/text/tokenizer.h"

namespace dalle::text {

/// Id of an empty caption slot; equal to models::kPadToken.
inline constexpr int64_t kPadToken = -1;

struct EncodedCaption {
  std::vector<int64_t> ids;  // `length` ids, kPadToken past the end
  bool truncated = false;    // the caption had more pieces than fit
};

/// Encodes, cuts off what is past `length` (paper: "at most 256 tokens", the rule is ours) and pads. Thread-safe.
class CaptionEncoder {
 public:
  /// `dropout`: probability of BPE dropout for the calls with a key (paper B.2: 0.1, in training only).
  CaptionEncoder(Tokenizer tokenizer, int64_t length, double dropout = 0);

  /// Without dropout.
  EncodedCaption encode(std::string_view caption) const;
  /// With dropout drawn from `key`.
  EncodedCaption encode(std::string_view caption, RandomKey key) const;

  int64_t length() const { return length_; }
  const Tokenizer& tokenizer() const { return tokenizer_; }

 private:
  EncodedCaption fit(std::vector<int64_t> ids) const;

  Tokenizer tokenizer_;
  int64_t length_;
  double dropout_;
};

}  // namespace dalle::text

// How a codebook is used over many pictures.
#pragma once

#include <cstdint>

#include "dalle/core/tensor.h"

namespace dalle::evaluation {

/// Counts codes over many pictures.
class CodeUsage {
 public:
  explicit CodeUsage(int64_t vocab_size);
  void add(const Tensor& codes);
  /// Share of the vocabulary that was seen at least once.
  double share_used() const;
  int64_t num_used() const;
  /// exp of the entropy of the code histogram: 1 for one code, vocab_size for uniform use.
  double perplexity() const;
  int64_t total() const;
  /// i64 [V], for adding up what several ranks saw.
  Tensor& counts() { return counts_; }

 private:
  Tensor counts_;  // i64 [V]
};

}  // namespace dalle::evaluation

// Temperature, top-k and top-p on next-token logits.
#pragma once

#include <cstdint>

#include "dalle/core/tensor.h"

namespace dalle::generation {

struct FilterOptions {
  double temperature = 1;  // > 0
  int64_t top_k = 0;       // 0: all
  double top_p = 1;        // in (0, 1]; 1: all
  bool operator==(const FilterOptions&) const = default;
};

/// logits [B, V] / temperature, with -inf where a token is filtered out. Top-k keeps every token that ties with the k-th;
/// top-p keeps the smallest set of most probable tokens whose probability reaches top_p, never fewer than one.
Tensor filter_logits(const Tensor& logits_BV, const FilterOptions& options);

}  // namespace dalle::generation

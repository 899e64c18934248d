#include "dalle/generation/logits_filter.h"

#include <ATen/ATen.h>

#include <limits>

namespace dalle::generation {

Tensor filter_logits(const Tensor& logits_BV, const FilterOptions& options) {
  constexpr double kNever = -std::numeric_limits<double>::infinity();
  Tensor logits = logits_BV / options.temperature;
  if (options.top_k > 0 && options.top_k < logits.size(1)) {
    const Tensor kth = std::get<0>(logits.topk(options.top_k, 1)).slice(1, options.top_k - 1);
    logits = logits.masked_fill(logits < kth, kNever);
  }
  if (options.top_p < 1) {
    const auto [sorted, order] = logits.sort(1, /*descending=*/true);
    const Tensor probability = at::softmax(sorted, 1);
    // A token stays while the mass before it has not reached top_p; the first always stays.
    const Tensor mass_before = probability.cumsum(1) - probability;
    const Tensor drop = at::zeros_like(logits, at::kBool).scatter(1, order, mass_before >= options.top_p);
    logits = logits.masked_fill(drop, kNever);
  }
  return logits;
}

}  // namespace dalle::generation

#include "dalle/evaluation/code_usage.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

namespace dalle::evaluation {

CodeUsage::CodeUsage(int64_t vocab_size) : counts_(at::zeros({vocab_size}, at::kLong)) {}

void CodeUsage::add(const Tensor& codes) { counts_ += at::bincount(codes.flatten().to(at::kCPU), {}, counts_.size(0)); }

int64_t CodeUsage::num_used() const { return (counts_ > 0).sum().item<int64_t>(); }
int64_t CodeUsage::total() const { return counts_.sum().item<int64_t>(); }

double CodeUsage::share_used() const { return static_cast<double>(num_used()) / static_cast<double>(counts_.size(0)); }

double CodeUsage::perplexity() const {
  const Tensor p = counts_.to(at::kDouble) / std::max<double>(1, static_cast<double>(total()));
  return std::exp(-at::xlogy(p, p).sum().item<double>());
}

}  // namespace dalle::evaluation

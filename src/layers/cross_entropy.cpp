#include "dalle/layers/cross_entropy.h"

#include <ATen/ATen.h>

namespace dalle::layers {
namespace {

Tensor losses(const Tensor& logits, const Tensor& targets, at::Reduction::Reduction reduction) {
  const Tensor flat = logits.reshape({-1, logits.size(-1)});
  const auto type = flat.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  return at::cross_entropy_loss(flat.to(type), targets.reshape({-1}), {}, reduction, /*ignore_index=*/-1);
}

}  // namespace

Tensor cross_entropy_sum(const Tensor& logits, const Tensor& targets) {
  return losses(logits, targets, at::Reduction::Sum);
}

Tensor cross_entropy_each(const Tensor& logits, const Tensor& targets) {
  return losses(logits, targets, at::Reduction::None).view(targets.sizes());
}

}  // namespace dalle::layers

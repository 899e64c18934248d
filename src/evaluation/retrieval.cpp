#include "dalle/evaluation/retrieval.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace dalle::evaluation {
namespace {

double recall_one_way(const Tensor& similarity, int64_t k) {
  const Tensor own = similarity.diagonal().unsqueeze(1);
  const Tensor better = (similarity >= own).sum(1) - 1;  // its own entry is not better than itself
  return (better < k).to(at::kDouble).mean().item<double>();
}

Tensor pooled(const Tensor& pictures) {
  const int64_t side = std::min<int64_t>(16, pictures.size(2));
  return at::adaptive_avg_pool2d(pictures.to(at::kFloat), {side, side}).flatten(1);
}

}  // namespace

Recall recall_at(const Tensor& image_features, const Tensor& text_features, int64_t k) {
  const Tensor similarity = at::matmul(image_features, text_features.t());
  return {recall_one_way(similarity, k), recall_one_way(similarity.t(), k)};
}

double nearest_original_rate(const Tensor& pictures, const Tensor& originals) {
  const Tensor distance = at::cdist(pooled(pictures), pooled(originals));
  const Tensor own = at::arange(pictures.size(0), distance.options().dtype(at::kLong));
  return (distance.argmin(1) == own).to(at::kDouble).mean().item<double>();
}

}  // namespace dalle::evaluation

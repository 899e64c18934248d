#include "dalle/evaluation/retrieval.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace dalle::evaluation {
namespace {

double recall_one_way(const Tensor& similarity, int64_t k) {
  const Tensor own = similarity.diagonal().unsqueeze(1);
  // "Not less" rather than "at least", so that NaN finds nothing; its own entry is not better than itself.
  const Tensor better = (similarity < own).logical_not().sum(1) - 1;
  return (better < k).to(at::kDouble).mean().item<double>();
}

Tensor pooled(const Tensor& pictures) {
  const int64_t side = std::min<int64_t>(16, pictures.size(2));
  return at::adaptive_avg_pool2d(pictures.to(at::kDouble), {side, side}).flatten(1);
}

}  // namespace

Recall recall_at(const Tensor& image_features, const Tensor& text_features, int64_t k) {
  const Tensor similarity = at::matmul(image_features, text_features.t());
  return {recall_one_way(similarity, k), recall_one_way(similarity.t(), k)};
}

Tensor nearest_original(const Tensor& pictures, const Tensor& originals) {
  // Differences first, in f64: distances by a matrix product (cdist's default) mix up pictures that are nearly alike.
  const Tensor distance = at::cdist(pooled(pictures), pooled(originals), /*p=*/2, /*compute_mode=*/2);
  return distance.argmin(1);
}

double nearest_original_rate(const Tensor& pictures, const Tensor& originals) {
  const Tensor nearest = nearest_original(pictures, originals);
  return (nearest == at::arange(nearest.size(0), nearest.options())).to(at::kDouble).mean().item<double>();
}

}  // namespace dalle::evaluation

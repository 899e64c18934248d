#include "dalle/layers/likelihood.h"

#include <ATen/ATen.h>

#include <cmath>

namespace dalle::layers {

Tensor map_pixels(const Tensor& x, double eps) { return x * (1 - 2 * eps) + eps; }

Tensor unmap_pixels(const Tensor& x, double eps) { return ((x - eps) / (1 - 2 * eps)).clamp(0, 1); }

Tensor logit_laplace_nll(const Tensor& x, const Tensor& mu, const Tensor& log_b) {
  const Tensor log_x = x.log(), log_1mx = at::log1p(-x);
  const Tensor residual = (log_x - log_1mx - mu).abs();
  return std::log(2.0) + log_b + (log_x + log_1mx) + residual * at::exp(-log_b);
}

Tensor reconstruction_from_stats(const Tensor& stats_B6HW) {
  return unmap_pixels(at::sigmoid(stats_B6HW.slice(1, 0, 3)));
}

}  // namespace dalle::layers

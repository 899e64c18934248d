#include "dalle/layers/likelihood.h"

#include <ATen/ATen.h>

#include <cmath>
#include <numbers>

namespace dalle::layers {

Tensor map_pixels(const Tensor& x, double eps) { return x * (1 - 2 * eps) + eps; }

Tensor unmap_pixels(const Tensor& x, double eps) { return ((x - eps) / (1 - 2 * eps)).clamp(0, 1); }

Tensor logit_laplace_nll(const Tensor& x, const Tensor& mu, const Tensor& log_b) {
  const Tensor log_x = x.log(), log_1mx = at::log1p(-x);
  const Tensor residual = (log_x - log_1mx - mu).abs();
  return std::log(2.0) + log_b + (log_x + log_1mx) + residual * at::exp(-log_b);
}

Tensor laplace_nll(const Tensor& x, const Tensor& mu, const Tensor& log_b) {
  return std::log(2.0) + log_b + (x - mu).abs() * at::exp(-log_b);
}

Tensor gaussian_nll(const Tensor& x, const Tensor& mu, const Tensor& log_b) {
  return 0.5 * std::log(2 * std::numbers::pi) + log_b + 0.5 * ((x - mu) * at::exp(-log_b)).square();
}

Tensor pixel_nll(Likelihood likelihood, const Tensor& pixels_B3HW, const Tensor& stats_B6HW,
                 std::optional<double> min_log_scale) {
  const Tensor mu = stats_B6HW.slice(1, 0, 3);
  Tensor log_b = stats_B6HW.slice(1, 3, 6);
  if (min_log_scale) log_b = log_b.clamp_min(*min_log_scale);
  switch (likelihood) {
    case Likelihood::kLaplace:
      return laplace_nll(pixels_B3HW, mu, log_b);
    case Likelihood::kGaussian:
      return gaussian_nll(pixels_B3HW, mu, log_b);
    case Likelihood::kLogitLaplace:
      break;
  }
  return logit_laplace_nll(map_pixels(pixels_B3HW), mu, log_b);
}

Tensor reconstruction_from_stats(const Tensor& stats_B6HW, Likelihood likelihood) {
  const Tensor mu = stats_B6HW.slice(1, 0, 3);
  return likelihood == Likelihood::kLogitLaplace ? unmap_pixels(at::sigmoid(mu)) : mu.clamp(0, 1);
}

}  // namespace dalle::layers

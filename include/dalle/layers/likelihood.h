// What the decoder's six maps say about pixels x in [0, 1]: mu and ln b of a density for each sub-pixel (three maps mu, then
// three ln b). The paper's is the logit-Laplace (A.3, equations 2 and 3); Laplace and Gauss are there to compare it with.
//
//   logit_laplace  y = phi(x) = (1 - 2 eps) x + eps,  f(y) = exp(-|logit y - mu| / b) / (2 b y (1 - y))   a density over y
//   laplace        f(x) = exp(-|x - mu| / b) / (2 b)                                                        (l1 loss)
//   gaussian       f(x) = exp(-((x - mu) / b)^2 / 2) / (b sqrt(2 pi))                                       (l2 loss)
//
// All are normalised, in nats per sub-pixel, and may be negative. The paper reports the first in y, the others are in x:
// add -ln(1 - 2 eps) = 0.2231 to the first to compare them (change of variables).
#pragma once

#include <optional>

#include "dalle/core/enum_names.h"
#include "dalle/core/tensor.h"

namespace dalle::layers {

inline constexpr double kLogitLaplaceEps = 0.1;

enum class Likelihood { kLogitLaplace, kLaplace, kGaussian };

/// phi(x) = (1 - 2 eps) x + eps for x in [0, 1].
Tensor map_pixels(const Tensor& x, double eps = kLogitLaplaceEps);
/// The inverse, clamped to [0, 1].
Tensor unmap_pixels(const Tensor& x, double eps = kLogitLaplaceEps);

/// -ln f(x | mu, b), elementwise in f32, where x in (0, 1) is mapped already and
/// ln f = -ln 2 - ln b - ln x - ln(1 - x) - |logit x - mu| / b.
Tensor logit_laplace_nll(const Tensor& x, const Tensor& mu, const Tensor& log_b);
/// ln 2 + ln b + |x - mu| / b, elementwise.
Tensor laplace_nll(const Tensor& x, const Tensor& mu, const Tensor& log_b);
/// ln(2 pi) / 2 + ln b + ((x - mu) / b)^2 / 2, elementwise.
Tensor gaussian_nll(const Tensor& x, const Tensor& mu, const Tensor& log_b);

/// -ln f of pixels [B, 3, H, W] in [0, 1] under a decoder's output [B, 6, H, W], elementwise; ln b is clamped from below
/// where a bound is given.
Tensor pixel_nll(Likelihood likelihood, const Tensor& pixels_B3HW, const Tensor& stats_B6HW,
                 std::optional<double> min_log_scale = std::nullopt);

/// The picture a decoder's output shows, [B, 6, H, W] -> [B, 3, H, W]: unmap(sigmoid(mu)) (paper A.3), or mu clamped to
/// [0, 1]. The scales are ignored.
Tensor reconstruction_from_stats(const Tensor& stats_B6HW, Likelihood likelihood = Likelihood::kLogitLaplace);

}  // namespace dalle::layers

namespace dalle {
template <>
struct EnumNames<layers::Likelihood> {
  static constexpr EnumName<layers::Likelihood> values[] = {{layers::Likelihood::kLogitLaplace, "logit_laplace"},
                                                            {layers::Likelihood::kLaplace, "laplace"},
                                                            {layers::Likelihood::kGaussian, "gaussian"}};
};
}  // namespace dalle

// The logit-Laplace likelihood (paper A.3, equations 2 and 3) and its pixel mapping.
#pragma once

#include "dalle/core/tensor.h"

namespace dalle::layers {

inline constexpr double kLogitLaplaceEps = 0.1;

/// phi(x) = (1 - 2 eps) x + eps for x in [0, 1].
Tensor map_pixels(const Tensor& x, double eps = kLogitLaplaceEps);
/// The inverse, clamped to [0, 1].
Tensor unmap_pixels(const Tensor& x, double eps = kLogitLaplaceEps);

/// -ln f(x | mu, b), elementwise in f32, where x in (0, 1) is mapped already and
/// ln f = -ln 2 - ln b - ln x - ln(1 - x) - |logit x - mu| / b. May be negative: f is a density.
Tensor logit_laplace_nll(const Tensor& x, const Tensor& mu, const Tensor& log_b);

/// The picture a decoder output shows: unmap(sigmoid(mu)) of the first three of six maps. [B, 6, H, W] -> [B, 3, H, W].
Tensor reconstruction_from_stats(const Tensor& stats_B6HW);

}  // namespace dalle::layers

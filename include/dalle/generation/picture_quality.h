// How near two pictures are.
#pragma once

#include "dalle/core/tensor.h"

namespace dalle::generation {

/// Peak signal-to-noise ratio in dB per picture, peak 1: f64 [B]. a, b: [B, 3, H, W] in [0, 1].
Tensor psnr(const Tensor& a, const Tensor& b);

/// Structural similarity (Wang et al. 2004): 11x11 Gaussian window of sigma 1.5, K1 0.01, K2 0.03, mean over windows that
/// lie inside and over channels: f64 [B]. Pictures below 11 pixels use the largest odd window that fits.
Tensor ssim(const Tensor& a, const Tensor& b);

}  // namespace dalle::generation

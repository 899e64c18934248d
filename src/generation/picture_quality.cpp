#include "dalle/generation/picture_quality.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>

namespace dalle::generation {
namespace {

// Depthwise convolution of [B, C, H, W] with a normalised Gaussian window, valid positions only.
Tensor blur(const Tensor& x, const Tensor& window_1d) {
  const int64_t channels = x.size(1), size = window_1d.size(0);
  const std::array<int64_t, 1> one{1}, none{0};
  const Tensor down = window_1d.view({1, 1, size, 1}).expand({channels, 1, size, 1});
  const Tensor across = window_1d.view({1, 1, 1, size}).expand({channels, 1, 1, size});
  return at::conv2d(at::conv2d(x, down, {}, one, none, one, channels), across, {}, one, none, one, channels);
}

Tensor gaussian_window(int64_t size) {
  const Tensor offsets = at::arange(size, at::kDouble) - static_cast<double>(size - 1) / 2;
  const Tensor weights = at::exp(-offsets * offsets / (2 * 1.5 * 1.5));
  return weights / weights.sum();
}

}  // namespace

Tensor psnr(const Tensor& a, const Tensor& b) {
  const Tensor error = (a.to(at::kDouble) - b.to(at::kDouble)).square().flatten(1).mean(1);
  return -10 * at::log10(error);
}

Tensor ssim(const Tensor& a, const Tensor& b) {
  int64_t size = std::min<int64_t>({11, a.size(2), a.size(3)});
  size -= 1 - size % 2;
  const Tensor window = gaussian_window(size).to(a.device());
  const Tensor x = a.to(at::kDouble), y = b.to(at::kDouble);
  constexpr double c1 = 0.01 * 0.01, c2 = 0.03 * 0.03;
  const Tensor mean_x = blur(x, window), mean_y = blur(y, window);
  const Tensor var_x = blur(x * x, window) - mean_x.square();
  const Tensor var_y = blur(y * y, window) - mean_y.square();
  const Tensor covariance = blur(x * y, window) - mean_x * mean_y;
  const Tensor map = (2 * mean_x * mean_y + c1) * (2 * covariance + c2) /
                     ((mean_x.square() + mean_y.square() + c1) * (var_x + var_y + c2));
  return map.flatten(1).mean(1);
}

}  // namespace dalle::generation

// PSNR and SSIM against closed forms and a loop over windows.
#include "dalle/generation/picture_quality.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "dalle/core/random.h"
#include "support/tensor_matchers.h"

namespace dalle::generation {
namespace {

using testing::close_to;

Tensor pictures(int64_t batch, int64_t height, int64_t width, uint64_t seed) {
  const auto keys = std::vector<RandomKey>{random_key(seed, Purpose::kEvaluation)};
  return uniform_rows(keys, batch * 3 * height * width, at::kCPU).view({batch, 3, height, width});
}

/// SSIM of two planes by its definition: every window inside, weights of a 2-D Gaussian of sigma 1.5.
double slow_ssim(const Tensor& a_HW, const Tensor& b_HW) {
  const Tensor a = a_HW.to(at::kDouble), b = b_HW.to(at::kDouble);
  int64_t size = std::min<int64_t>({11, a.size(0), a.size(1)});
  if (size % 2 == 0) --size;
  const double centre = static_cast<double>(size / 2);
  double sum = 0;
  int64_t windows = 0;
  for (int64_t y = 0; y + size <= a.size(0); ++y) {
    for (int64_t x = 0; x + size <= a.size(1); ++x, ++windows) {
      double total = 0, mean_a = 0, mean_b = 0, square_a = 0, square_b = 0, product = 0;
      for (int64_t i = 0; i < size; ++i) {
        for (int64_t j = 0; j < size; ++j) {
          const double dy = static_cast<double>(i) - centre, dx = static_cast<double>(j) - centre;
          const double w = std::exp(-(dx * dx + dy * dy) / 4.5);
          const double p = a[y + i][x + j].item<double>(), q = b[y + i][x + j].item<double>();
          total += w;
          mean_a += w * p;
          mean_b += w * q;
          square_a += w * p * p;
          square_b += w * q * q;
          product += w * p * q;
        }
      }
      mean_a /= total;
      mean_b /= total;
      const double variance_a = square_a / total - mean_a * mean_a, variance_b = square_b / total - mean_b * mean_b;
      const double covariance = product / total - mean_a * mean_b;
      sum += (2 * mean_a * mean_b + 1e-4) * (2 * covariance + 9e-4) /
             ((mean_a * mean_a + mean_b * mean_b + 1e-4) * (variance_a + variance_b + 9e-4));
    }
  }
  return sum / static_cast<double>(windows);
}

TEST(Psnr, OfAConstantDifference) {
  const Tensor a = pictures(2, 5, 7, 0) * 0.5;
  for (const double difference : {0.5, 0.1, 1e-3}) {
    const Tensor value = psnr(a, a.to(at::kDouble) + difference);
    ASSERT_EQ(value.sizes(), (std::vector<int64_t>{2}));
    EXPECT_EQ(value.scalar_type(), at::kDouble);
    EXPECT_NEAR(value[0].item<double>(), -20 * std::log10(difference), 1e-9);
    EXPECT_NEAR(value[1].item<double>(), -20 * std::log10(difference), 1e-9);
  }
}

TEST(Psnr, IsPerPictureSymmetricAndInfiniteForEqualOnes) {
  const Tensor a = pictures(3, 4, 4, 1), b = a.clone();
  b[1][0][0][0] += 0.25;  // one of 48 values
  const Tensor value = psnr(a, b);
  EXPECT_NEAR(value[1].item<double>(), -10 * std::log10(0.0625 / 48), 1e-5);
  EXPECT_TRUE(std::isinf(value[0].item<double>()) && value[0].item<double>() > 0);
  EXPECT_TRUE(at::equal(psnr(b, a), value));
}

TEST(Ssim, EqualsTheDefinition) {
  for (const auto& [height, width] : {std::pair<int64_t, int64_t>{11, 11}, {13, 16}, {5, 9}, {4, 12}, {2, 3}, {1, 1}}) {
    const Tensor a = pictures(2, height, width, 2), b = a * 0.7 + pictures(2, height, width, 3) * 0.3;
    const Tensor value = ssim(a, b);
    ASSERT_EQ(value.sizes(), (std::vector<int64_t>{2}));
    for (const int64_t n : {0, 1}) {
      const double expected =
          (slow_ssim(a[n][0], b[n][0]) + slow_ssim(a[n][1], b[n][1]) + slow_ssim(a[n][2], b[n][2])) / 3;
      EXPECT_NEAR(value[n].item<double>(), expected, 1e-10) << height << " x " << width;
      EXPECT_LT(expected, 0.9999);
    }
  }
}

TEST(Ssim, OneForEqualPicturesAndSymmetric) {
  const Tensor a = pictures(2, 16, 16, 4), b = pictures(2, 16, 16, 5);
  EXPECT_TRUE(close_to(ssim(a, a), at::ones({2}, at::kDouble), 1e-12));
  EXPECT_TRUE(close_to(ssim(a, b), ssim(b, a), 1e-12));
  const Tensor flat = at::full({1, 3, 16, 16}, 0.5);
  EXPECT_NEAR(ssim(flat, flat).item<double>(), 1, 1e-12);
}

TEST(Ssim, FallsWithNoiseAndPunishesItMoreThanAShiftOfBrightness) {
  const Tensor a = pictures(1, 32, 32, 6) * 0.5 + 0.25, noise = pictures(1, 32, 32, 7) - 0.5;
  const double little = ssim(a, a + 0.1 * noise).item<double>(), much = ssim(a, a + 0.5 * noise).item<double>();
  EXPECT_GT(little, much);
  const double same_error = noise.square().mean().sqrt().item<double>() * 0.5;
  EXPECT_GT(ssim(a, a + same_error).item<double>(), much);
}

}  // namespace
}  // namespace dalle::generation

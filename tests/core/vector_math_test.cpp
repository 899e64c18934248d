// exp, log and GELU for vector loops, against the C library in f64.
#include "dalle/core/vector_math.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numbers>

namespace dalle {
namespace {

TEST(VectorMath, ExpIsWithinOneTenMillionth) {
  double worst = 0;
  for (double x = -87; x < 88; x += 1.7e-4) {
    const auto given = static_cast<float>(x);
    const double expected = std::exp(static_cast<double>(given));
    worst = std::max(worst, std::abs(static_cast<double>(vector_exp(given)) - expected) / expected);
  }
  EXPECT_LT(worst, 1e-7);
  EXPECT_EQ(vector_exp(0), 1.0f);
}

TEST(VectorMath, ExpOfTheVeryNegativeIsZeroAndNanStaysNan) {
  EXPECT_EQ(vector_exp(-88), 0.0f);
  EXPECT_EQ(vector_exp(-1e30f), 0.0f);
  EXPECT_EQ(vector_exp(-std::numeric_limits<float>::infinity()), 0.0f);
  EXPECT_TRUE(std::isnan(vector_exp(std::numeric_limits<float>::quiet_NaN())));
}

TEST(VectorMath, LogIsWithinOneTenMillionthOverAllMagnitudes) {
  double worst = 0;
  for (uint32_t bits = 0x00800000; bits < 0x7F800000; bits += 1009) {
    const auto x = std::bit_cast<float>(bits);
    const double expected = std::log(static_cast<double>(x));
    worst = std::max(worst, std::abs(static_cast<double>(vector_log(x)) - expected) / std::abs(expected));
  }
  EXPECT_LT(worst, 1e-7);
}

TEST(VectorMath, LogKeepsItsPrecisionBesideOne) {
  for (int k = -4096; k <= 4096; ++k) {
    const float x = 1.0f + static_cast<float>(k) * 0x1p-23f;
    const double expected = std::log(static_cast<double>(x));
    EXPECT_NEAR(static_cast<double>(vector_log(x)), expected, 1e-7 * std::abs(expected)) << k;
  }
}

TEST(VectorMath, GeluIsWithinItsBound) {
  double worst = 0;
  for (double x = -30; x < 30; x += 1.3e-4) {
    const auto given = static_cast<float>(x);
    const double exact = 0.5 * static_cast<double>(given) * std::erfc(-static_cast<double>(given) / std::sqrt(2.0));
    worst = std::max(worst, std::abs(static_cast<double>(vector_gelu(given)) - exact) / std::max(1.0, std::abs(x)));
  }
  EXPECT_LT(worst, 2e-7);
  EXPECT_EQ(vector_gelu(0), 0.0f);
  EXPECT_EQ(vector_gelu(-100), 0.0f);
  EXPECT_EQ(vector_gelu(100), 100.0f);
}

TEST(VectorMath, SlopesOfTheGelusAreTheirDerivatives) {
  double gelu = 0, quick = 0, quick_value = 0;
  for (double x = -30; x < 30; x += 1.3e-4) {
    const auto given = static_cast<float>(x);
    const double at = static_cast<double>(given), size = std::max(1.0, std::abs(at));
    const double density = std::exp(-0.5 * at * at) / std::sqrt(2 * std::numbers::pi);
    const double slope = 0.5 * std::erfc(-at / std::sqrt(2.0)) + at * density;
    gelu = std::max(gelu, std::abs(static_cast<double>(vector_gelu_and_slope(given).slope) - slope) / size);
    const double s = 1 / (1 + std::exp(-1.702 * at));
    const ValueAndSlope found = vector_quick_gelu_and_slope(given);
    quick = std::max(quick, std::abs(static_cast<double>(found.slope) - (s + 1.702 * at * s * (1 - s))) / size);
    quick_value = std::max(quick_value, std::abs(static_cast<double>(found.value) - at * s) / size);
  }
  EXPECT_LT(gelu, 4e-7);
  EXPECT_LT(quick, 1e-6);
  EXPECT_LT(quick_value, 1e-6);
  EXPECT_NEAR(vector_quick_gelu(-1000), 0.0f, 1e-30);
  EXPECT_EQ(vector_quick_gelu(1000), 1000.0f);
}

}  // namespace
}  // namespace dalle

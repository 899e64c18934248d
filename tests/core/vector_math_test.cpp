// exp, log and GELU for vector loops, against the C library in f64.
#include "dalle/core/vector_math.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

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

}  // namespace
}  // namespace dalle

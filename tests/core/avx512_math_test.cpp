// The register functions against the loops' functions of core/vector_math.h.
#include "dalle/core/avx512_math.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "dalle/core/vector_math.h"

namespace dalle {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

struct Results {
  std::vector<float> exponentials, powers, values, slopes;
};

DALLE_AVX512 Results results_of(const std::vector<float>& x) {
  const std::vector<float> empty(x.size());
  Results out{empty, empty, empty, empty};
  for (size_t i = 0; i < x.size(); i += 16) {
    const __m512 here = _mm512_loadu_ps(x.data() + i);
    _mm512_storeu_ps(out.exponentials.data() + i, avx512_exp(here));
    _mm512_storeu_ps(out.powers.data() + i, avx512_exp2(here));
    const Avx512ValueAndSlope gelu = avx512_gelu_and_slope(here);
    _mm512_storeu_ps(out.values.data() + i, gelu.value);
    _mm512_storeu_ps(out.slopes.data() + i, gelu.slope);
  }
  return out;
}

class Avx512Math : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!__builtin_cpu_supports("x86-64-v4")) GTEST_SKIP() << "this processor has no AVX-512";
  }
};

TEST_F(Avx512Math, IsVectorMath) {
  std::vector<float> x;
  for (int i = 0; i < 1 << 18; ++i) x.push_back(-90.0f + static_cast<float>(i) * (178.0f / (1 << 18)));
  const Results found = results_of(x);
  double exponential = 0, power = 0, value = 0, slope = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double exact = x[i] < -87 ? 0 : std::exp(static_cast<double>(x[i]));
    exponential =
        std::max(exponential, std::abs(static_cast<double>(found.exponentials[i]) - exact) / (exact + 1e-300));
    const double exact_power = std::exp2(static_cast<double>(x[i]));
    power = std::max(power, std::abs(static_cast<double>(found.powers[i]) / exact_power - 1));
    const ValueAndSlope gelu = vector_gelu_and_slope(x[i]);
    const double size = std::max(1.0, std::abs(static_cast<double>(x[i])));
    value = std::max(value, std::abs(static_cast<double>(found.values[i] - gelu.value)) / size);
    slope = std::max(slope, std::abs(static_cast<double>(found.slopes[i] - gelu.slope)) / size);
  }
  EXPECT_LT(exponential, 2e-7);
  EXPECT_LT(power, 3e-7);
  EXPECT_LT(value, 3e-7);
  EXPECT_LT(slope, 3e-7);
}

TEST_F(Avx512Math, WhatIsNotFiniteStaysSo) {
  std::vector<float> x(16, 0.0f);
  x[0] = -kInfinity, x[1] = std::numeric_limits<float>::quiet_NaN(), x[2] = -87.5f, x[3] = kInfinity;
  const Results found = results_of(x);
  EXPECT_EQ(found.exponentials[0], 0.0f);
  EXPECT_TRUE(std::isnan(found.exponentials[1]));
  EXPECT_EQ(found.exponentials[2], 0.0f);
  EXPECT_EQ(found.exponentials[4], 1.0f);
  EXPECT_EQ(found.powers[0], 0.0f);
  EXPECT_TRUE(std::isnan(found.powers[1]));
  EXPECT_EQ(found.powers[4], 1.0f);
  x[2] = -126.5f, x[3] = -std::numeric_limits<float>::max(), x[5] = 127.0f, x[6] = -126.0f;
  const Results ends = results_of(x);
  EXPECT_EQ(ends.powers[2], 0.0f);
  EXPECT_EQ(ends.powers[3], 0.0f);
  EXPECT_EQ(ends.powers[5], std::ldexp(1.0f, 127));
  EXPECT_EQ(ends.powers[6], std::ldexp(1.0f, -126));
  EXPECT_TRUE(std::isnan(found.values[1]));
  EXPECT_EQ(found.values[3], kInfinity);
}

}  // namespace
}  // namespace dalle

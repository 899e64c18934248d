// Own bf16 conversions against c10's.
#include "dalle/core/bf16.h"

#include <c10/util/BFloat16.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace dalle {
namespace {

TEST(Bf16, WideningIsExactForAllValues) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const auto given = static_cast<uint16_t>(bits);
    const float expected = static_cast<float>(c10::BFloat16(given, c10::BFloat16::from_bits()));
    EXPECT_EQ(std::bit_cast<uint32_t>(bf16_to_float(given)), std::bit_cast<uint32_t>(expected)) << bits;
  }
}

TEST(Bf16, NarrowingRoundsToNearestEven) {
  for (uint64_t bits = 0; bits < (uint64_t{1} << 32); bits += 65'521) {  // a prime step: all exponents, many fractions
    const auto value = std::bit_cast<float>(static_cast<uint32_t>(bits));
    if (std::isnan(value)) continue;
    EXPECT_EQ(float_to_bf16(value), c10::BFloat16(value).x) << value;
  }
  EXPECT_EQ(float_to_bf16(1.0f + 0x1p-8f), 0x3F80);                     // half-way, down to even
  EXPECT_EQ(float_to_bf16(1.0f + 0x1p-7f + 0x1p-8f), 0x3F82);           // half-way, up to even
  EXPECT_EQ(float_to_bf16(std::numeric_limits<float>::max()), 0x7F80);  // to infinity
}

TEST(Bf16, NanStaysNan) {
  EXPECT_TRUE(std::isnan(bf16_to_float(float_to_bf16(std::numeric_limits<float>::quiet_NaN()))));
  EXPECT_TRUE(std::isnan(bf16_to_float(float_to_bf16(std::bit_cast<float>(0xFF800001u)))));
}

}  // namespace
}  // namespace dalle

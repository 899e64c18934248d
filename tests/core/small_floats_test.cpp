// The 16-bit formats over all their values, against the definition written out in f64.
#include "dalle/core/small_floats.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "support/random_tensor.h"
#include "support/tensor_matchers.h"

namespace dalle {
namespace {

using testing::bitwise_equal;

constexpr float kInfinite = std::numeric_limits<float>::infinity();

template <SmallFloat F>
uint16_t encode(float value, Overflow overflow = Overflow::kInfinity) {
  return float_to_small_float<F>(value, overflow);
}

/// The value by the definition of the format.
double defined_value(const SmallFloat& format, uint16_t bits) {
  const int mantissa_size = 1 << format.mantissa_bits;
  const int mantissa = bits & (mantissa_size - 1), exponent = (bits >> format.mantissa_bits) & 63;
  const double sign = format.has_sign && (bits & 0x8000) != 0 ? -1 : 1;
  if (exponent == 63) return mantissa == 0 ? sign * INFINITY : NAN;
  const double fraction = static_cast<double>(mantissa) / mantissa_size;
  if (exponent == 0) return sign * std::ldexp(fraction, 1 - format.exponent_bias);
  return sign * std::ldexp(1 + fraction, exponent - format.exponent_bias);
}

template <class Format>
class SmallFloats : public ::testing::Test {};
struct Signed {
  static constexpr SmallFloat kFormat = kFloat169;
};
struct Unsigned {
  static constexpr SmallFloat kFormat = kFloat0610;
};
using Formats = ::testing::Types<Signed, Unsigned>;
TYPED_TEST_SUITE(SmallFloats, Formats);

TYPED_TEST(SmallFloats, EveryValueIsTheDefinitionsAndSurvivesTheRoundTrip) {
  static constexpr SmallFloat kF = TypeParam::kFormat;
  for (uint32_t code = 0; code < 0x10000; ++code) {
    const auto bits = static_cast<uint16_t>(code);
    const double expected = defined_value(kF, bits);
    const float value = small_float_to_float<kF>(bits);
    if (std::isnan(expected)) {
      ASSERT_TRUE(std::isnan(value)) << code;
      ASSERT_TRUE(std::isnan(small_float_to_float<kF>(encode<kF>(value)))) << code;
      ASSERT_TRUE(std::isnan(small_float_to_float<kF>(encode<kF>(value, Overflow::kClamp)))) << code;
      continue;
    }
    ASSERT_EQ(static_cast<double>(value), expected) << code;
    ASSERT_EQ(std::signbit(value), std::signbit(expected)) << code;
    ASSERT_EQ(encode<kF>(value), bits) << value;
    if (!std::isfinite(value)) continue;
    ASSERT_EQ(encode<kF>(value, Overflow::kClamp), bits) << value;
  }
}

TYPED_TEST(SmallFloats, MidpointsRoundToEvenAndTheirNeighboursToTheNearest) {
  static constexpr SmallFloat kF = TypeParam::kFormat;
  const auto check = [](float middle, uint16_t below, uint16_t above) {
    ASSERT_EQ(encode<kF>(middle), (below & 1) == 0 ? below : above) << middle;
    ASSERT_EQ(encode<kF>(std::nextafter(middle, 0.0f)), below) << middle;
    ASSERT_EQ(encode<kF>(std::nextafter(middle, kInfinite)), above) << middle;
    if (!kF.has_sign) return;
    ASSERT_EQ(encode<kF>(-middle), encode<kF>(middle) | 0x8000) << middle;
    ASSERT_EQ(encode<kF>(-std::nextafter(middle, kInfinite)), above | 0x8000) << middle;
  };
  const auto infinity = static_cast<uint16_t>(kF.infinity());
  for (uint16_t below = 0; below + 1 < infinity; ++below) {
    const auto above = static_cast<uint16_t>(below + 1);
    const double middle = (defined_value(kF, below) + defined_value(kF, above)) / 2;
    ASSERT_EQ(static_cast<double>(static_cast<float>(middle)), middle);  // an f32
    check(static_cast<float>(middle), below, above);
  }
  // Above the largest number the next step of its exponent would have been infinity's value.
  const auto largest = static_cast<uint16_t>(infinity - 1);
  const double limit = std::ldexp(1.0, 63 - kF.exponent_bias);
  check(static_cast<float>((defined_value(kF, largest) + limit) / 2), largest, infinity);
}

TYPED_TEST(SmallFloats, EncodingIsMonotone) {
  static constexpr SmallFloat kF = TypeParam::kFormat;
  uint16_t before = 0;
  for (uint32_t bits = 0; bits <= 0x7F800000u; bits += 4'001) {  // a prime step: all exponents, many fractions
    const uint16_t code = encode<kF>(std::bit_cast<float>(bits));
    ASSERT_GE(code, before) << bits;
    before = code;
  }
  EXPECT_EQ(encode<kF>(kInfinite), kF.infinity());
}

TYPED_TEST(SmallFloats, OverflowGoesToInfinityOrToTheLargestNumber) {
  static constexpr SmallFloat kF = TypeParam::kFormat;
  const auto largest = static_cast<uint16_t>(kF.infinity() - 1);
  for (const float value : {16.0f, 1e10f, std::numeric_limits<float>::max(), kInfinite}) {
    EXPECT_EQ(encode<kF>(value), kF.infinity()) << value;
    EXPECT_EQ(encode<kF>(value, Overflow::kClamp), largest) << value;
    if (!kF.has_sign) continue;
    EXPECT_EQ(encode<kF>(-value), kF.infinity() | 0x8000) << value;
    EXPECT_EQ(encode<kF>(-value, Overflow::kClamp), largest | 0x8000) << value;
  }
  for (const float tiny : {std::numeric_limits<float>::denorm_min(), std::numeric_limits<float>::min(), 1e-30f}) {
    EXPECT_EQ(encode<kF>(tiny), 0) << tiny;
  }
}

TEST(SmallFloat, RangesAreThePapers) {
  EXPECT_EQ(small_float_to_float<kFloat169>(kFloat169.infinity() - 1), 15.984375f);
  EXPECT_EQ(small_float_to_float<kFloat169>(1 << 9), 0x1p-58f);
  EXPECT_EQ(small_float_to_float<kFloat169>(1), 0x1p-67f);
  EXPECT_EQ(small_float_to_float<kFloat0610>(kFloat0610.infinity() - 1), 7.99609375f);
  EXPECT_EQ(small_float_to_float<kFloat0610>(1), 0x1p-69f);
}

TEST(SmallFloat, WithoutASignThereIsNothingBelowZero) {
  for (const float value : {-0.0f, -1e-9f, -3.0f, -kInfinite}) {
    EXPECT_EQ(encode<kFloat0610>(value), 0) << value;
    EXPECT_EQ(encode<kFloat0610>(value, Overflow::kClamp), 0) << value;
  }
  EXPECT_TRUE(std::isnan(small_float_to_float<kFloat0610>(encode<kFloat0610>(-NAN))));
  EXPECT_EQ(encode<kFloat169>(-0.0f), 0x8000);
}

/// All exponents of f32 with random fractions and signs, and the values that are special.
Tensor many_values() {
  const Tensor numbers =
      testing::random_tensor(1, {1 << 15}) * at::exp2(at::linspace(-140, 20, 1 << 15, at::kDouble)).to(at::kFloat);
  return at::cat({numbers, at::tensor({0.0f, -0.0f, kInfinite, -kInfinite, NAN, -NAN, 3.4e38f, 1e-45f})});
}

TEST(SmallFloat, TensorsAreCodedElementByElementOnEitherWay) {
  const Tensor values = many_values();
  for (const Overflow overflow : {Overflow::kInfinity, Overflow::kClamp}) {
    for (const SmallFloat& format : {kFloat169, kFloat0610}) {
      const Tensor bits = encode_small_floats(values, format, overflow);
      for (int64_t i = 0; i < values.numel(); ++i) {
        const float value = values.const_data_ptr<float>()[i];
        const uint16_t expected =
            format == kFloat169 ? encode<kFloat169>(value, overflow) : encode<kFloat0610>(value, overflow);
        ASSERT_EQ(static_cast<uint16_t>(bits.const_data_ptr<int16_t>()[i]), expected) << value;
      }
      EXPECT_TRUE(bitwise_equal(encode_by_operators(values, format, overflow), bits));
    }
  }
  const Tensor codes = at::arange(-32768, 32768).to(at::kShort);
  for (const SmallFloat& format : {kFloat169, kFloat0610}) {
    const Tensor decoded = decode_small_floats(codes, format), other = decode_by_operators(codes, format);
    EXPECT_TRUE(at::equal(decoded.isnan(), other.isnan()));
    EXPECT_TRUE(bitwise_equal(decoded.nan_to_num(0, INFINITY, -INFINITY), other.nan_to_num(0, INFINITY, -INFINITY)));
    for (int64_t i = 0; i < codes.numel(); ++i) {
      const double expected = defined_value(format, static_cast<uint16_t>(i - 32768));
      const double value = decoded.const_data_ptr<float>()[i];
      ASSERT_TRUE(std::isnan(expected) ? std::isnan(value) : value == expected) << i;
    }
  }
}

TEST(SmallFloat, LayoutsAreKeptAndOtherTypesRefused) {
  const Tensor image = testing::random_tensor(2, {2, 3, 4, 5}).contiguous(at::MemoryFormat::ChannelsLast);
  const Tensor bits = encode_small_floats(image, kFloat169, Overflow::kInfinity);
  EXPECT_EQ(bits.strides(), image.strides());
  EXPECT_TRUE(testing::close_to(decode_small_floats(bits, kFloat169), image, 0x1p-10));
  const Tensor every_other = image.slice(3, 0, 5, 2);
  EXPECT_TRUE(bitwise_equal(encode_small_floats(every_other, kFloat169, Overflow::kInfinity), bits.slice(3, 0, 5, 2)));
  EXPECT_THROW(encode_small_floats(image.to(at::kDouble), kFloat169, Overflow::kInfinity), c10::ValueError);
  EXPECT_THROW(decode_small_floats(image, kFloat169), c10::ValueError);
}

}  // namespace
}  // namespace dalle

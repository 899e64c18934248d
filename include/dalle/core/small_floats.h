// The paper's 16-bit floats with six exponent bits, named sign-exponent-mantissa: 1-6-9 for running means of gradients,
// error buffers and PowerSGD's factors, 0-6-10 (no sign) for running variances (B.2, E.2). IEEE-like: subnormals, round to
// nearest even, the highest exponent for infinity and NaN. Tensors hold the bits as int16, in the layout of the numbers.
//
//             largest     smallest normal   smallest     relative rounding
//   1-6-9     15.984375   2^-58             2^-67        2^-10
//   0-6-10     7.99609    2^-59             2^-69        2^-11
//
// 1-6-9's bias follows from the paper's "just below 16". 0-6-10's is not given: 60 is the largest whose range holds 5, the
// bound that the paper clips variances to.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "dalle/core/tensor.h"

namespace dalle {

/// A format of 16 bits or fewer: six exponent bits above `mantissa_bits`, and a sign at bit 15 or none.
struct SmallFloat {
  bool has_sign = true;
  int mantissa_bits = 0;
  int exponent_bias = 0;

  bool operator==(const SmallFloat&) const = default;
  /// The bits of +infinity; those of the largest finite number are one less, of NaN more.
  constexpr uint32_t infinity() const { return uint32_t{63} << mantissa_bits; }
  constexpr uint32_t quiet_nan() const { return infinity() | (uint32_t{1} << (mantissa_bits - 1)); }
  constexpr uint32_t magnitude_mask() const { return has_sign ? 0x7FFF : 0xFFFF; }
  /// Bits that f32 has and this has not.
  constexpr int shift() const { return 23 - mantissa_bits; }
  /// Bits of an f32 whose exponent field is the difference of the biases.
  constexpr uint32_t rebias() const { return static_cast<uint32_t>(127 - exponent_bias) << 23; }
  /// Distance of subnormals, 2^(1 - bias - mantissa bits).
  constexpr float step() const {
    return std::bit_cast<float>((128u - static_cast<uint32_t>(exponent_bias + mantissa_bits)) << 23);
  }
  /// An f32 whose last bit stands for step(): between it and twice it f32s are as far apart as subnormals.
  constexpr float anchor() const { return step() * 0x1p23f; }
};

inline constexpr SmallFloat kFloat169{.has_sign = true, .mantissa_bits = 9, .exponent_bias = 59};
inline constexpr SmallFloat kFloat0610{.has_sign = false, .mantissa_bits = 10, .exponent_bias = 60};

/// What becomes of numbers whose rounded size is above the largest finite one: infinity as IEEE has it, or that number
/// (E.2: P and Q). Infinities count as such numbers, NaN does not.
enum class Overflow { kInfinity, kClamp };

namespace detail {
/// A choice without a branch: compilers sink what raises floating-point flags into branches, which then do not vectorise.
inline uint32_t choose(bool condition, uint32_t yes, uint32_t no) {
  const uint32_t mask = 0u - static_cast<uint32_t>(condition);
  return (yes & mask) | (no & ~mask);
}
}  // namespace detail

/// Exact.
template <SmallFloat F>
inline float small_float_to_float(uint16_t bits) {
  const uint32_t magnitude = bits & F.magnitude_mask(), sign = F.has_sign ? (bits & 0x8000u) << 16 : 0u;
  const uint32_t rebias = detail::choose(magnitude >= F.infinity(), 0x7F800000u - (63u << 23), F.rebias());
  const uint32_t normal = (magnitude << F.shift()) + rebias;
  const uint32_t anchor = std::bit_cast<uint32_t>(F.anchor());
  const uint32_t subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(anchor | magnitude) - F.anchor());
  return std::bit_cast<float>(sign | detail::choose(magnitude >> F.mantissa_bits == 0, subnormal, normal));
}

/// Rounded to nearest even. Without a sign, numbers below 0 become 0. NaN stays NaN.
template <SmallFloat F>
inline uint16_t float_to_small_float(float value, Overflow overflow) {
  const uint32_t bits = std::bit_cast<uint32_t>(value), magnitude = bits & 0x7FFFFFFFu, sign = bits >> 31;
  const uint32_t odd = (magnitude >> F.shift()) & 1u, half = 1u << (F.shift() - 1);
  const uint32_t anchor = std::bit_cast<uint32_t>(F.anchor());  // the addition itself rounds
  const uint32_t subnormal = std::bit_cast<uint32_t>(std::bit_cast<float>(magnitude) + F.anchor()) - anchor;
  const uint32_t normal = ((magnitude + half - 1 + odd) >> F.shift()) - (F.rebias() >> F.shift());
  const uint32_t rounded = detail::choose(magnitude < F.rebias() + (1u << 23), subnormal, normal);
  const uint32_t limited = std::min(rounded, overflow == Overflow::kClamp ? F.infinity() - 1 : F.infinity());
  const bool is_nan = magnitude > 0x7F800000u;
  const uint32_t code = detail::choose(is_nan, F.quiet_nan(), limited);
  if (F.has_sign) return static_cast<uint16_t>(code | sign << 15);
  return static_cast<uint16_t>(code & (0u - (static_cast<uint32_t>(is_nan) | (sign ^ 1u))));
}

/// f32 of any shape and layout -> int16 of the same. Loops on the CPU, operators elsewhere. Throws c10::ValueError for
/// another type.
Tensor encode_small_floats(const Tensor& values, const SmallFloat& format, Overflow overflow);

/// int16 -> f32.
Tensor decode_small_floats(const Tensor& bits, const SmallFloat& format);

/// The same two by tensor operators, for any device.
Tensor encode_by_operators(const Tensor& values, const SmallFloat& format, Overflow overflow);
Tensor decode_by_operators(const Tensor& bits, const SmallFloat& format);

}  // namespace dalle

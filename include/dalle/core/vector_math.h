// exp, log and the GELUs in f32 without branches or calls, so that loops over them vectorise (with AVX-512 about two cycles an
// element). Polynomials after Cephes (Moshier, expf.c and logf.c); errors below are measured over all floats by a test.
#pragma once

#include <bit>
#include <cstdint>

namespace dalle {

/// exp(x) for x <= 88, relative error below 1e-7; 0 below -87.
inline float vector_exp(float x) {
  constexpr float kLog2E = 1.44269504088896341f, kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to the nearest integer
  const float clamped = x < -87.0f ? -87.0f : x;
  const float shifted = clamped * kLog2E + kRound;
  const float n = shifted - kRound;
  const float r = clamped - n * kLn2High - n * kLn2Low;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  const float fraction = p * r * r + r + 1.0f;
  const uint32_t scale = (std::bit_cast<uint32_t>(shifted) << 23) + 0x3F800000u;  // the low bits of `shifted` hold n
  const float value = fraction * std::bit_cast<float>(scale);
  return x < -87.0f ? 0.0f : value;
}

/// ln x for normal x > 0, relative error below 1e-7 (also beside x = 1, where the result is small).
inline float vector_log(float x) {
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f, kSqrtHalf = 0.707106781186547524f;
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const float mantissa = std::bit_cast<float>((bits & 0x007FFFFFu) | 0x3F000000u);  // in [0.5, 1)
  const bool is_small = mantissa < kSqrtHalf;
  const float exponent = static_cast<float>(static_cast<int32_t>(bits >> 23) - 126) - (is_small ? 1.0f : 0.0f);
  const float f = (is_small ? mantissa + mantissa : mantissa) - 1.0f;
  const float square = f * f;
  float p = 7.0376836292e-2f;
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const float tail = p * f * square + exponent * kLn2Low - 0.5f * square;
  return f + tail + exponent * kLn2High;
}

/// A function and its derivative at one place.
struct ValueAndSlope {
  float value, slope;
};

/// x Phi(x) with the normal distribution function, and Phi(x) + x Phi'(x); absolute errors below 2e-7 and 4e-7 max(1, |x|).
/// erfc by Abramowitz and Stegun 7.1.26.
inline ValueAndSlope vector_gelu_and_slope(float x) {
  const float z = (x < 0.0f ? -x : x) * 0.707106781186547524f;
  const float t = 1.0f / (1.0f + 0.3275911f * z);
  const float e = vector_exp(-z * z);
  float p = 1.061405429f;
  p = p * t - 1.453152027f;
  p = p * t + 1.421413741f;
  p = p * t - 0.284496736f;
  p = p * t + 0.254829592f;
  const float tail = 0.5f * p * t * e;  // Phi(-|x|)
  return {x < 0.0f ? x * tail : x - x * tail, (x < 0.0f ? tail : 1.0f - tail) + x * (0.398942280401432678f * e)};
}

inline float vector_gelu(float x) { return vector_gelu_and_slope(x).value; }

/// x s(1.702 x) with the logistic function s, and its derivative; absolute errors below 1e-6 max(1, |x|).
inline ValueAndSlope vector_quick_gelu_and_slope(float x) {
  constexpr float kSlope = 1.702f;
  const float exponent = -kSlope * x;
  const float s = 1.0f / (1.0f + vector_exp(exponent < 80.0f ? exponent : 80.0f));
  return {x * s, s + kSlope * x * s * (1.0f - s)};
}

inline float vector_quick_gelu(float x) { return vector_quick_gelu_and_slope(x).value; }

}  // namespace dalle

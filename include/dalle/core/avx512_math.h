// The functions of core/vector_math.h on a register of 16 numbers, and powers of two: for loops that also round to bf16, which
// compilers do not vectorise well. Sources as there. Included by .cpp files alone.
#pragma once

#include "dalle/core/avx512.h"

namespace dalle {

/// exp(x) for x <= 88, 0 below -87; NaN stays NaN.
DALLE_AVX512_PART __m512 avx512_exp(__m512 x) {
  const __m512 least = _mm512_set1_ps(-87.0f);
  const __m512 clamped = _mm512_max_ps(least, x);  // of a NaN the second
  const __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(clamped, _mm512_set1_ps(1.44269504088896341f)),
                                        _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m512 r = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), clamped);
  r = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), r);
  __m512 p = _mm512_set1_ps(1.9875691500e-4f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.3981999507e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(8.3334519073e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(4.1665795894e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.6666665459e-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.0000001201e-1f));
  const __m512 fraction = _mm512_add_ps(_mm512_fmadd_ps(_mm512_mul_ps(p, r), r, r), _mm512_set1_ps(1.0f));
  return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, least, _CMP_NLT_UQ), fraction, n);
}

/// 2^x for x <= 127, relative error below 3e-7; 0 below -126; NaN stays NaN. For exponents that are products anyway, where the
/// factor can have log2(e) in it: a third less work than avx512_exp(). Polynomial fitted to the least largest relative error.
DALLE_AVX512_PART __m512 avx512_exp2(__m512 x) {
  const __m512 least = _mm512_set1_ps(-126.0f);
  const __m512 clamped = _mm512_max_ps(least, x);  // of a NaN the second
  const __m512 n = _mm512_roundscale_ps(clamped, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 r = _mm512_sub_ps(clamped, n);
  __m512 p = _mm512_set1_ps(1.326472731307149e-3f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(9.671512991189957e-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(5.550733581185341e-2f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.24022242426872253f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.6931470036506653f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_maskz_scalef_ps(_mm512_cmp_ps_mask(x, least, _CMP_NLT_UQ), p, n);
}
inline constexpr float kLog2E = 1.44269504088896341f;

/// x Phi(x) and its derivative.
struct Avx512ValueAndSlope {
  __m512 value, slope;
};
DALLE_AVX512_PART Avx512ValueAndSlope avx512_gelu_and_slope(__m512 x) {
  const __m512 one = _mm512_set1_ps(1.0f);
  // t of z = |x| / sqrt 2, and exp(-z^2).
  const __m512 t =
      _mm512_div_ps(one, _mm512_fmadd_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.3275911f * 0.707106781186547524f), one));
  const __m512 e = avx512_exp2(_mm512_mul_ps(_mm512_mul_ps(x, x), _mm512_set1_ps(-0.5f * kLog2E)));
  __m512 p = _mm512_set1_ps(1.061405429f);
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-1.453152027f));
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(1.421413741f));
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(-0.284496736f));
  p = _mm512_fmadd_ps(p, t, _mm512_set1_ps(0.254829592f));
  const __m512 tail = _mm512_mul_ps(_mm512_mul_ps(p, t), _mm512_mul_ps(e, _mm512_set1_ps(0.5f)));  // Phi(-|x|)
  const __mmask16 is_negative = _mm512_cmp_ps_mask(x, _mm512_setzero_ps(), _CMP_LT_OQ);
  const __m512 distribution = _mm512_mask_sub_ps(tail, static_cast<__mmask16>(~is_negative), one, tail);
  return {_mm512_mul_ps(x, distribution),
          _mm512_fmadd_ps(_mm512_mul_ps(x, e), _mm512_set1_ps(0.398942280401432678f), distribution)};
}

}  // namespace dalle

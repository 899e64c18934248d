#include "row_kernels_avx512.h"

#include <limits>

#include "dalle/core/avx512_math.h"

namespace dalle::generation::detail {
namespace {

// x Phi(x). erf is y P(y^2) / Q(y^2) within [-4, 4] (the rational function of Eigen's generic_fast_erf), beyond it is 1 or -1.
DALLE_AVX512_PART __m512 gelu_of(__m512 x) {
  const __m512 scaled = _mm512_mul_ps(x, _mm512_set1_ps(0.707106781186547524f));
  const __m512 y = _mm512_max_ps(_mm512_set1_ps(-4.0f), _mm512_min_ps(_mm512_set1_ps(4.0f), scaled));  // NaN stays
  const __m512 square = _mm512_mul_ps(y, y);
  __m512 p = _mm512_set1_ps(-2.72614225801306e-10f);
  p = _mm512_fmadd_ps(p, square, _mm512_set1_ps(2.77068142495902e-08f));
  p = _mm512_fmadd_ps(p, square, _mm512_set1_ps(-2.10102402082508e-06f));
  p = _mm512_fmadd_ps(p, square, _mm512_set1_ps(-5.69250639462346e-05f));
  p = _mm512_fmadd_ps(p, square, _mm512_set1_ps(-7.34990630326855e-04f));
  p = _mm512_fmadd_ps(p, square, _mm512_set1_ps(-2.95459980854025e-03f));
  p = _mm512_fmadd_ps(p, square, _mm512_set1_ps(-1.60960333262415e-02f));
  __m512 q = _mm512_set1_ps(-1.45660718464996e-05f);
  q = _mm512_fmadd_ps(q, square, _mm512_set1_ps(-2.13374055278905e-04f));
  q = _mm512_fmadd_ps(q, square, _mm512_set1_ps(-1.68282697438203e-03f));
  q = _mm512_fmadd_ps(q, square, _mm512_set1_ps(-7.37332916720468e-03f));
  q = _mm512_fmadd_ps(q, square, _mm512_set1_ps(-1.42647390514189e-02f));
  __m512 inverse = _mm512_rcp14_ps(q);
  inverse = _mm512_fmadd_ps(inverse, _mm512_fnmadd_ps(q, inverse, _mm512_set1_ps(1.0f)), inverse);
  const __m512 erf = _mm512_mul_ps(_mm512_mul_ps(y, p), inverse);
  // What rounding leaves of 1 + erf must not meet large numbers.
  const __m512 half = _mm512_mul_ps(_mm512_max_ps(_mm512_set1_ps(-6.0f), x), _mm512_set1_ps(0.5f));
  return _mm512_fmadd_ps(half, erf, half);
}

DALLE_AVX512_PART __mmask16 first_lanes(int64_t count) {
  return static_cast<__mmask16>(count >= 16 ? 0xFFFF : (1 << count) - 1);
}

}  // namespace

bool has_row_avx512() {
  static const bool has = __builtin_cpu_supports("x86-64-v4") != 0;
  return has;
}

DALLE_AVX512 void avx512_gelu(int64_t size, float* x) {
  int64_t i = 0;
  for (; i + 32 <= size; i += 32) {
    const __m512 first = gelu_of(_mm512_loadu_ps(x + i)), second = gelu_of(_mm512_loadu_ps(x + i + 16));
    _mm512_storeu_ps(x + i, first);
    _mm512_storeu_ps(x + i + 16, second);
  }
  for (; i < size; i += 16) {
    const __mmask16 valid = first_lanes(size - i);
    _mm512_mask_storeu_ps(x + i, valid, gelu_of(_mm512_maskz_loadu_ps(valid, x + i)));
  }
}

DALLE_AVX512 float avx512_sum_of_exponentials(const float* x, int64_t size, float shift) {
  const __m512 shifts = _mm512_set1_ps(shift), nothing = _mm512_set1_ps(-std::numeric_limits<float>::infinity());
  __m512 first = _mm512_setzero_ps(), second = first;
  int64_t i = 0;
  for (; i + 32 <= size; i += 32) {
    first = _mm512_add_ps(first, avx512_exp(_mm512_sub_ps(_mm512_loadu_ps(x + i), shifts)));
    second = _mm512_add_ps(second, avx512_exp(_mm512_sub_ps(_mm512_loadu_ps(x + i + 16), shifts)));
  }
  for (; i < size; i += 16) {
    const __m512 rest = _mm512_mask_loadu_ps(nothing, first_lanes(size - i), x + i);
    first = _mm512_add_ps(first, avx512_exp(_mm512_sub_ps(rest, shifts)));
  }
  return _mm512_reduce_add_ps(_mm512_add_ps(first, second));
}

}  // namespace dalle::generation::detail

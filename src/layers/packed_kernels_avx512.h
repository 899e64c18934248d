// Private to the kernels of packed_weights.cpp that are written with AVX-512: where 16 sums go.
#pragma once

#include "dalle/core/avx512.h"
#include "packed_kernels.h"

namespace dalle::layers::detail {

/// `part` to columns 16 v .. 16 v + 15 of a row.
__attribute__((target("avx512f"), always_inline)) inline void store_sum(__m512 part, const Sums& sums, int64_t row,
                                                                        int64_t v) {
  float* to = sums.at + row * sums.stride + v * 16;
  if (sums.adds) part = _mm512_add_ps(_mm512_loadu_ps(to), part);
  if (sums.scale != nullptr) {
    const __m512 scale = _mm512_mul_ps(_mm512_loadu_ps(sums.scale + v * 16), _mm512_set1_ps(sums.row_scale[row]));
    part = sums.bias == nullptr ? _mm512_mul_ps(part, scale)
                                : _mm512_fmadd_ps(part, scale, _mm512_loadu_ps(sums.bias + v * 16));
  } else if (sums.bias != nullptr) {
    part = _mm512_add_ps(part, _mm512_loadu_ps(sums.bias + v * 16));
  }
  _mm512_storeu_ps(to, part);
}

/// Exact sums of integers from those of high and of low bytes; `heads`: what is taken off (packed_kernels.h).
DALLE_AVX512_PART __m512 joined(__m512i high, __m512i low, __m512i heads) {
  const __m512i both = _mm512_add_epi32(_mm512_slli_epi32(high, 8), low);
  return _mm512_cvtepi32_ps(_mm512_sub_epi32(both, heads));
}

}  // namespace dalle::layers::detail

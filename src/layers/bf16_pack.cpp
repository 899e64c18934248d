#include "dalle/layers/bf16_pack.h"

#include "dalle/core/avx512.h"

namespace dalle::layers::detail {
namespace {

// 16 bf16 numbers, or f32 numbers rounded to such.
DALLE_AVX512_BF16_PART __m256i half(const uint16_t* at) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at));
}
DALLE_AVX512_BF16_PART __m256i half(const float* at) {
  return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_loadu_ps(at)));
}

// 32 of them.
DALLE_AVX512_BF16_PART __m512i whole(const uint16_t* at) { return _mm512_loadu_si512(at); }
DALLE_AVX512_BF16_PART __m512i whole(const float* at) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(_mm512_loadu_ps(at + 16), _mm512_loadu_ps(at)));
}

template <class T>
DALLE_AVX512_BF16_PART __m512i pairs(const T* even, const T* odd) {
  return _mm512_or_si512(_mm512_cvtepu16_epi32(half(even)), _mm512_slli_epi32(_mm512_cvtepu16_epi32(half(odd)), 16));
}

DALLE_AVX512_BF16_PART void store(void* out, __m512i value) { _mm512_storeu_si512(out, value); }

// 16 registers of 16 32-bit numbers, transposed: neighbours in pairs, in fours, and then the 128-bit quarters.
DALLE_AVX512_BF16_PART void transpose_16x16(__m512i (&r)[16]) {
  __m512i t[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
    t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
    r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
    r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
    r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
  }
  for (int i = 0; i < 4; ++i) {
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xDD);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xDD);
  }
  for (int i = 0; i < 4; ++i) {
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xDD);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xDD);
  }
}

template <class T>
DALLE_AVX512_BF16 void pack_any_rows(const T* in, int64_t in_stride, int64_t rows, int64_t columns, uint16_t* out,
                                     int64_t out_columns) {
  for (int64_t r = 0; r < rows; r += 2) {
    const T* even = in + r * in_stride;
    uint16_t* to = out + r * out_columns;
    for (int64_t c = 0; c < columns; c += kPackColumns) store(to + 2 * c, pairs(even + c, even + in_stride + c));
  }
}

template <class T>
DALLE_AVX512_BF16 void pack_any_transposed(const T* in, int64_t in_stride, int64_t rows, int64_t columns, uint16_t* out,
                                           int64_t out_columns) {
  for (int64_t c = 0; c < columns; c += kPackColumns) {
    for (int64_t r = 0; r < rows; r += kPackDepth) {
      __m512i block[16];
      for (int i = 0; i < 16; ++i) block[i] = whole(in + (c + i) * in_stride + r);
      transpose_16x16(block);
      for (int i = 0; i < 16; ++i) store(out + (r / 2 + i) * 2 * out_columns + 2 * c, block[i]);
    }
  }
}

}  // namespace

void pack_rows(const uint16_t* in, int64_t in_stride, int64_t rows, int64_t columns, uint16_t* out,
               int64_t out_columns) {
  pack_any_rows(in, in_stride, rows, columns, out, out_columns);
}
void pack_rows(const float* in, int64_t in_stride, int64_t rows, int64_t columns, uint16_t* out, int64_t out_columns) {
  pack_any_rows(in, in_stride, rows, columns, out, out_columns);
}

DALLE_AVX512_BF16 void pack_edge(const uint16_t* even, const uint16_t* odd, int64_t columns, uint16_t* out) {
  alignas(64) static constexpr uint16_t kZeros[kPackColumns] = {};
  for (int64_t c = 0; c < columns; c += kPackColumns) {
    store(out + 2 * c, pairs(even == nullptr ? kZeros : even + c, odd == nullptr ? kZeros : odd + c));
  }
}

void pack_transposed(const uint16_t* in, int64_t in_stride, int64_t rows, int64_t columns, uint16_t* out,
                     int64_t out_columns) {
  pack_any_transposed(in, in_stride, rows, columns, out, out_columns);
}
void pack_transposed(const float* in, int64_t in_stride, int64_t rows, int64_t columns, uint16_t* out,
                     int64_t out_columns) {
  pack_any_transposed(in, in_stride, rows, columns, out, out_columns);
}

DALLE_AVX512_BF16 void transpose(const uint16_t* in, int64_t in_stride, int64_t rows, int64_t columns, uint16_t* out,
                                 int64_t out_stride, float* sums) {
  const __m512bh ones = reinterpret_cast<__m512bh>(_mm512_set1_epi16(0x3F80));
  for (int64_t c = 0; c < columns && sums != nullptr; ++c) sums[c] = 0;
  for (int64_t r = 0; r < rows; r += kPackDepth) {
    for (int64_t c = 0; c < columns; c += kPackColumns) {
      __m512i block[16];
      __m512 sum = _mm512_setzero_ps();
      for (int i = 0; i < 16; ++i) {
        const uint16_t* even = in + (r + 2 * i) * in_stride + c;
        block[i] = pairs(even, even + in_stride);
        sum = _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(block[i]), ones);
        // 32 rows side by side are more streams than the processor follows by itself.
        _mm_prefetch(reinterpret_cast<const char*>(even + kPackDepth * in_stride), _MM_HINT_T0);
        _mm_prefetch(reinterpret_cast<const char*>(even + (kPackDepth + 1) * in_stride), _MM_HINT_T0);
      }
      if (sums != nullptr) _mm512_storeu_ps(sums + c, _mm512_add_ps(_mm512_loadu_ps(sums + c), sum));
      transpose_16x16(block);
      for (int i = 0; i < 16; ++i) store(out + (c + i) * out_stride + r, block[i]);
    }
  }
}

namespace {

// `Groups` of them side by side.
template <int kGroups>
DALLE_AVX512_BF16 void pack_some_groups(const uint16_t* in, int64_t in_stride, int64_t rows, uint16_t* out,
                                        float* sums) {
  const __m512bh ones = reinterpret_cast<__m512bh>(_mm512_set1_epi16(0x3F80));
  __m512 sum[kGroups];
  for (int g = 0; g < kGroups; ++g) sum[g] = _mm512_setzero_ps();
  for (int64_t r = 0; r < rows; r += 2, in += 2 * in_stride, out += 2 * kPackColumns) {
    for (int g = 0; g < kGroups; ++g) {
      const uint16_t* even = in + g * kPackColumns;
      const __m512i both = pairs(even, even + in_stride);
      sum[g] = _mm512_dpbf16_ps(sum[g], reinterpret_cast<__m512bh>(both), ones);
      store(out + g * rows * kPackColumns, both);
      if (g % 2 == 0) {  // rows far apart are no stream that the processor follows by itself
        _mm_prefetch(reinterpret_cast<const char*>(even + kPackDepth * in_stride), _MM_HINT_T0);
        _mm_prefetch(reinterpret_cast<const char*>(even + (kPackDepth + 1) * in_stride), _MM_HINT_T0);
      }
    }
  }
  DALLE_UNROLLED
  for (int g = 0; g < kGroups; ++g) _mm512_storeu_ps(sums + g * kPackColumns, sum[g]);
}

}  // namespace

void pack_groups(const uint16_t* in, int64_t in_stride, int64_t rows, int64_t columns, uint16_t* out, float* sums) {
  constexpr int64_t kTogether = 4;
  for (int64_t c = 0; c < columns;) {
    const bool many = columns - c >= kTogether * kPackColumns;
    (many ? pack_some_groups<kTogether> : pack_some_groups<1>)(in + c, in_stride, rows, out + c * rows, sums + c);
    c += (many ? kTogether : 1) * kPackColumns;
  }
}

DALLE_AVX512_BF16 void split_rows(const float* in, int64_t in_stride, int64_t rows, int64_t columns, int64_t low_third,
                                  uint16_t* out) {
  for (int64_t r = 0; r < rows; ++r, in += in_stride, out += 3 * columns) {
    for (int64_t c = 0; c < columns; c += kPackColumns) {
      const __m512 x = _mm512_loadu_ps(in + c);
      const __m256i high = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x));
      const __m512 widened = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(high), 16));
      const __m256i low = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_sub_ps(x, widened)));
      for (int64_t third = 0; third < 3; ++third) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + third * columns + c), third == low_third ? low : high);
      }
    }
  }
}

}  // namespace dalle::layers::detail

#include <cstring>

#include "attention_kernels.h"
#include "dalle/core/avx512_math.h"

namespace dalle::layers::detail {
namespace {

constexpr int kRows = 8;  // of a tile, whose 8 x 2 sums stay in registers

DALLE_AVX512_BF16_PART __m512bh pairs_at(const uint16_t* at) {
  return reinterpret_cast<__m512bh>(_mm512_loadu_si512(at));
}

DALLE_AVX512_BF16_PART __m512bh pair_everywhere(const uint16_t* at) {
  int32_t pair;
  std::memcpy(&pair, at, sizeof pair);
  return reinterpret_cast<__m512bh>(_mm512_set1_epi32(pair));
}

// `m` rows, kRows at a time, by V registers of columns.
template <int V, bool kAdds>
DALLE_AVX512_BF16 void tiles(int64_t m, int64_t pairs, const PairOperand& a, const uint16_t* b, int64_t ldb, float* c,
                             int64_t ldc) {
  for (int64_t row = 0; row < m; row += kRows, c += kRows * ldc) {
    __m512 sum[kRows][V];
    DALLE_UNROLLED
    for (int i = 0; i < kRows; ++i) {
      DALLE_UNROLLED
      for (int v = 0; v < V; ++v) sum[i][v] = kAdds ? _mm512_loadu_ps(c + i * ldc + v * 16) : _mm512_setzero_ps();
    }
    const uint16_t* first = a.data + 2 * row * a.row;
    const uint16_t* rows[2] = {first, first + kRows * a.row};  // of four each: addresses that fit the registers
    const uint16_t* packed = b;
    for (int64_t k = 0; k < pairs; ++k, packed += 2 * ldb, rows[0] += 2 * a.pair, rows[1] += 2 * a.pair) {
      __m512bh column[V];
      for (int v = 0; v < V; ++v) column[v] = pairs_at(packed + v * 32);
      for (int i = 0; i < kRows; ++i) {
        const __m512bh pair = pair_everywhere(rows[i / 4] + 2 * (i % 4) * a.row);
        for (int v = 0; v < V; ++v) sum[i][v] = _mm512_dpbf16_ps(sum[i][v], column[v], pair);
      }
    }
    DALLE_UNROLLED
    for (int i = 0; i < kRows; ++i) {
      DALLE_UNROLLED
      for (int v = 0; v < V; ++v) _mm512_storeu_ps(c + i * ldc + v * 16, sum[i][v]);
    }
  }
}

// bf16 of both, `first` in the lower half.
DALLE_AVX512_BF16_PART __m512i rounded(__m512 first, __m512 second) {
  return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first));
}

// A row of 16 of each of two queries, as pairs of the queries.
DALLE_AVX512_BF16_PART void store_turned(__m512i halves, uint16_t* out) {
  alignas(64) static constexpr uint16_t kTurn[32] = {0, 16, 1, 17, 2,  18, 3,  19, 4,  20, 5,  21, 6,  22, 7,  23,
                                                     8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  _mm512_storeu_si512(out, _mm512_permutexvar_epi16(_mm512_load_si512(kTurn), halves));
}

template <bool kDrops>
DALLE_AVX512_BF16 void softmax_gradients(const SoftmaxGradientRows& rows, int64_t width, float scale) {
  const __m512 factor = _mm512_set1_ps(scale), exponent_factor = _mm512_set1_ps(scale * kLog2E);
  const __m512 normalizers[2] = {_mm512_set1_ps(rows.log_normalizers[0] * kLog2E),
                                 _mm512_set1_ps(rows.log_normalizers[1] * kLog2E)};
  const __m512 deltas[2] = {_mm512_set1_ps(rows.deltas[0]), _mm512_set1_ps(rows.deltas[1])};
  for (int64_t c = 0; c < width; c += 16) {
    __m512 weights[2], grads[2];
    for (int i = 0; i < 2; ++i) {
      const __m512 score = _mm512_loadu_ps(rows.scores[i] + c);
      weights[i] = avx512_exp2(_mm512_fmsub_ps(score, exponent_factor, normalizers[i]));
      __m512 grad = _mm512_loadu_ps(rows.grad_weights[i] + c);
      if (kDrops) grad = _mm512_mul_ps(grad, _mm512_loadu_ps(rows.factors[i] + c));
      grads[i] = _mm512_mul_ps(_mm512_mul_ps(factor, weights[i]), _mm512_sub_ps(grad, deltas[i]));
      if (kDrops) weights[i] = _mm512_mul_ps(weights[i], _mm512_loadu_ps(rows.factors[i] + c));
    }
    const __m512i grad_halves = rounded(grads[0], grads[1]);
    for (int i = 0; i < 2; ++i) {
      const __m256i half = i == 0 ? _mm512_castsi512_si256(grad_halves) : _mm512_extracti64x4_epi64(grad_halves, 1);
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(rows.grad_scores[i] + c), half);
    }
    store_turned(grad_halves, rows.turned_grad_scores + 2 * c);
    store_turned(rounded(weights[0], weights[1]), rows.turned_weights + 2 * c);
  }
}

}  // namespace

void pair_product(int64_t m, int64_t n, int64_t pairs, const PairOperand& a, const uint16_t* b, int64_t ldb, float* c,
                  int64_t ldc, bool adds) {
  for (int64_t column = 0; column < n; column += 32) {
    const bool is_wide = n - column >= 32;
    const auto run = adds ? (is_wide ? tiles<2, true> : tiles<1, true>) : (is_wide ? tiles<2, false> : tiles<1, false>);
    run(m, pairs, a, b + 2 * column, ldb, c + column, ldc);
  }
}

DALLE_AVX512_BF16 ExponentialRow exponentials_bf16(const float* row, int64_t width, float scale, uint16_t* out) {
  __m512 maximum = _mm512_loadu_ps(row);
  for (int64_t c = 16; c < width; c += 16) maximum = _mm512_max_ps(_mm512_loadu_ps(row + c), maximum);
  const float shift = _mm512_reduce_max_ps(maximum) * scale;
  const __m512 factor = _mm512_set1_ps(scale * kLog2E), offset = _mm512_set1_ps(shift * kLog2E);
  __m512 sum = _mm512_setzero_ps();
  for (int64_t c = 0; c < width; c += 16) {
    const __m512 e = avx512_exp2(_mm512_fmsub_ps(_mm512_loadu_ps(row + c), factor, offset));
    sum = _mm512_add_ps(sum, e);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + c), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(e)));
  }
  return {shift, _mm512_reduce_add_ps(sum)};
}

DALLE_AVX512_BF16 void convert_row_bf16(const float* in, int64_t size, float factor, uint16_t* out) {
  for (int64_t c = 0; c < size; c += 16) {
    const __m512 x = _mm512_mul_ps(_mm512_loadu_ps(in + c), _mm512_set1_ps(factor));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + c), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
  }
}

void softmax_gradient_rows(const SoftmaxGradientRows& rows, int64_t width, float scale) {
  (rows.factors[0] == nullptr ? softmax_gradients<false> : softmax_gradients<true>)(rows, width, scale);
}

DALLE_AVX512_BF16 float dot_bf16(const uint16_t* a, const uint16_t* b, int64_t size) {
  __m512 sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < size; i += 32) sum = _mm512_dpbf16_ps(sum, pairs_at(a + i), pairs_at(b + i));
  return _mm512_reduce_add_ps(sum);
}

}  // namespace dalle::layers::detail

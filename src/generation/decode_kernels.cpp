#include "decode_kernels.h"

#include <algorithm>
#include <cmath>

#include "dalle/core/avx512.h"
#include "dalle/core/bf16.h"
#include "dalle/core/vector_math.h"
#include "dalle/core/vectorise.h"

namespace dalle::generation::detail {
namespace {

constexpr int64_t kLanes = 16;

DALLE_INLINED float get(float x) { return x; }
DALLE_INLINED float get(uint16_t x) { return bf16_to_float(x); }

DALLE_INLINED float sum_of(const float (&lanes)[kLanes]) {
  float four[4];
  for (int i = 0; i < 4; ++i) four[i] = (lanes[i] + lanes[i + 4]) + (lanes[i + 8] + lanes[i + 12]);
  return (four[0] + four[1]) + (four[2] + four[3]);
}

// The sum of term(i) for i < size.
template <class Term>
DALLE_INLINED float sum_over(int64_t size, Term term) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += term(i + lane);
  }
  for (int64_t lane = 0; i < size; ++i, ++lane) lanes[lane] += term(i);
  return sum_of(lanes);
}

template <class T>
DALLE_INLINED void dots_of(const T* q, const T* keys, int64_t count, int64_t size, float* scores) {
  for (int64_t i = 0; i < count; ++i, keys += size) {
    scores[i] = sum_over(size, [&](int64_t c) { return get(q[c]) * get(keys[c]); });
  }
}

// clang-format off
DALLE_VECTORISED void plain_dots(const float* q, const float* keys, int64_t count, int64_t size, float* scores) { dots_of(q, keys, count, size, scores); }
DALLE_VECTORISED void plain_dots(const uint16_t* q, const uint16_t* keys, int64_t count, int64_t size, float* scores) { dots_of(q, keys, count, size, scores); }
// clang-format on

bool has_avx512() {
  static const bool has = __builtin_cpu_supports("x86-64-v4") != 0;
  return has;
}

bool has_avx512_bf16() {
  static const bool has = has_avx512() && __builtin_cpu_supports("avx512bf16") != 0;
  return has;
}

// The sums of four registers, in one.
DALLE_AVX512_PART __m128 sums_of(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512 abcd = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xEE));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

// dots_of() four keys at a time, for a register's sum costs more than the products: keys of a multiple of 16 numbers.
DALLE_AVX512 void dots_by_fours(const float* q, const float* keys, int64_t count, int64_t size, float* scores) {
  for (int64_t i = 0; i < count; i += 4) {
    __m512 sum[4];
    for (int64_t j = 0; j < 4; ++j) {
      const float* key = keys + std::min(i + j, count - 1) * size;
      sum[j] = _mm512_setzero_ps();
      for (int64_t c = 0; c < size; c += 16) {
        sum[j] = _mm512_fmadd_ps(_mm512_loadu_ps(q + c), _mm512_loadu_ps(key + c), sum[j]);
      }
    }
    const auto valid = static_cast<__mmask8>((1 << std::min<int64_t>(4, count - i)) - 1);
    _mm_mask_storeu_ps(scores + i, valid, sums_of(sum[0], sum[1], sum[2], sum[3]));
  }
}

DALLE_AVX512_BF16_PART __m512bh load_32(const uint16_t* x) { return reinterpret_cast<__m512bh>(_mm512_loadu_si512(x)); }

// The same by dot products of pairs: keys of a multiple of 32 numbers.
DALLE_AVX512_BF16 void dots_by_fours(const uint16_t* q, const uint16_t* keys, int64_t count, int64_t size,
                                     float* scores) {
  for (int64_t i = 0; i < count; i += 4) {
    __m512 sum[4];
    for (int64_t j = 0; j < 4; ++j) {
      const uint16_t* key = keys + std::min(i + j, count - 1) * size;
      sum[j] = _mm512_setzero_ps();
      for (int64_t c = 0; c < size; c += 32) sum[j] = _mm512_dpbf16_ps(sum[j], load_32(q + c), load_32(key + c));
    }
    const auto valid = static_cast<__mmask8>((1 << std::min<int64_t>(4, count - i)) - 1);
    _mm_mask_storeu_ps(scores + i, valid, sums_of(sum[0], sum[1], sum[2], sum[3]));
  }
}

// A stretch of a head's numbers at a time, whose sums stay in registers over all values.
template <class T>
DALLE_INLINED void add_values_of(const T* weights, const T* values, int64_t count, int64_t size, float* out) {
  constexpr int64_t kStretch = 2 * kLanes;
  int64_t c = 0;
  for (; c + kStretch <= size; c += kStretch) {
    float sum[kStretch];
    for (int64_t lane = 0; lane < kStretch; ++lane) sum[lane] = out[c + lane];
    for (int64_t i = 0; i < count; ++i) {
      for (int64_t lane = 0; lane < kStretch; ++lane) sum[lane] += get(weights[i]) * get(values[i * size + c + lane]);
    }
    for (int64_t lane = 0; lane < kStretch; ++lane) out[c + lane] = sum[lane];
  }
  for (int64_t i = 0; i < count; ++i) {
    for (int64_t rest = c; rest < size; ++rest) out[rest] += get(weights[i]) * get(values[i * size + rest]);
  }
}

DALLE_VECTORISED void plain_add_values(const uint16_t* weights, const uint16_t* values, int64_t count, int64_t size,
                                       float* out) {
  add_values_of(weights, values, count, size, out);
}

// Two values at a time, their numbers interleaved to pairs: for values of a multiple of 32 numbers.
DALLE_AVX512_BF16 void add_values_by_pairs(const uint16_t* weights, const uint16_t* values, int64_t count, int64_t size,
                                           float* out) {
  const __m512i first = _mm512_set_epi32(23, 22, 21, 20, 7, 6, 5, 4, 19, 18, 17, 16, 3, 2, 1, 0);
  const __m512i second = _mm512_set_epi32(31, 30, 29, 28, 15, 14, 13, 12, 27, 26, 25, 24, 11, 10, 9, 8);
  for (int64_t c = 0; c < size; c += 32) {
    __m512 low = _mm512_setzero_ps(), high = _mm512_setzero_ps();  // numbers 0-3 and 4-7 of every eight
    for (int64_t i = 0; i < count; i += 2) {
      const bool is_pair = i + 1 < count;
      const auto both = static_cast<uint32_t>(weights[i]) | (is_pair ? static_cast<uint32_t>(weights[i + 1]) << 16 : 0);
      const auto weight = reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int32_t>(both)));
      const uint16_t* value = values + i * size + c;
      const __m512i a = _mm512_loadu_si512(value);
      const __m512i b = is_pair ? _mm512_loadu_si512(value + size) : _mm512_setzero_si512();
      low = _mm512_dpbf16_ps(low, reinterpret_cast<__m512bh>(_mm512_unpacklo_epi16(a, b)), weight);
      high = _mm512_dpbf16_ps(high, reinterpret_cast<__m512bh>(_mm512_unpackhi_epi16(a, b)), weight);
    }
    float* to = out + c;
    _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to), _mm512_permutex2var_ps(low, first, high)));
    _mm512_storeu_ps(to + 16, _mm512_add_ps(_mm512_loadu_ps(to + 16), _mm512_permutex2var_ps(low, second, high)));
  }
}

}  // namespace

DALLE_VECTORISED void layer_norm(const float* x, int64_t size, const float* weight, const float* bias, float eps,
                                 float* out) {
  const auto count = static_cast<float>(size);
  const float mean = sum_over(size, [&](int64_t i) { return x[i]; }) / count;
  const float variance = sum_over(size, [&](int64_t i) { return (x[i] - mean) * (x[i] - mean); }) / count;
  const float scale = 1.0f / std::sqrt(variance + eps);
  for (int64_t i = 0; i < size; ++i) out[i] = (x[i] - mean) * scale * weight[i] + bias[i];
}

DALLE_VECTORISED void add(const float* x, int64_t size, float* sum) {
  for (int64_t i = 0; i < size; ++i) sum[i] += x[i];
}

DALLE_VECTORISED void multiply_by(float factor, int64_t size, float* x) {
  for (int64_t i = 0; i < size; ++i) x[i] *= factor;
}

DALLE_VECTORISED void gelu(int64_t size, float* x) {
  for (int64_t i = 0; i < size; ++i) x[i] = vector_gelu(x[i]);
}

DALLE_VECTORISED void quick_gelu(int64_t size, float* x) {
  for (int64_t i = 0; i < size; ++i) x[i] = vector_quick_gelu(x[i]);
}

DALLE_VECTORISED void store(const float* x, int64_t size, float* out) {
  for (int64_t i = 0; i < size; ++i) out[i] = x[i];
}

DALLE_VECTORISED void store(const float* x, int64_t size, uint16_t* out) {
  for (int64_t i = 0; i < size; ++i) out[i] = float_to_bf16(x[i]);
}

void dots(const float* q, const float* keys, int64_t count, int64_t size, float* scores) {
  if (size % kLanes == 0 && has_avx512()) {
    dots_by_fours(q, keys, count, size, scores);
  } else {
    plain_dots(q, keys, count, size, scores);
  }
}

void dots(const uint16_t* q, const uint16_t* keys, int64_t count, int64_t size, float* scores) {
  if (size % 32 == 0 && has_avx512_bf16()) {
    dots_by_fours(q, keys, count, size, scores);
  } else {
    plain_dots(q, keys, count, size, scores);
  }
}

DALLE_VECTORISED float exponentials(int64_t count, float* scores) {
  float largest[kLanes];
  std::fill_n(largest, kLanes, scores[0]);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      largest[lane] = scores[i + lane] > largest[lane] ? scores[i + lane] : largest[lane];
    }
  }
  for (int64_t lane = 0; i < count; ++i, ++lane) largest[lane] = std::max(largest[lane], scores[i]);
  const float shift = *std::max_element(largest, largest + kLanes);
  for (i = 0; i < count; ++i) scores[i] = vector_exp(scores[i] - shift);
  return sum_over(count, [&](int64_t at) { return scores[at]; });
}

DALLE_VECTORISED void add_values(const float* weights, const float* values, int64_t count, int64_t size, float* out) {
  add_values_of(weights, values, count, size, out);
}

void add_values(const uint16_t* weights, const uint16_t* values, int64_t count, int64_t size, float* out) {
  if (size % 32 == 0 && has_avx512_bf16()) {
    add_values_by_pairs(weights, values, count, size, out);
  } else {
    plain_add_values(weights, values, count, size, out);
  }
}

}  // namespace dalle::generation::detail

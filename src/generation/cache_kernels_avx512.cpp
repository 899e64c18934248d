#include "cache_kernels_avx512.h"

#include <cstring>
#include <limits>

#include "dalle/core/avx512_math.h"
#include "dalle/core/bf16.h"

namespace dalle::generation::detail {
namespace {

constexpr float kNotSeen = -std::numeric_limits<float>::infinity();

// The sums of four registers, in one.
DALLE_AVX512_PART __m128 sums_of(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512 abcd = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xEE));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

// The cache line as far behind `numbers` as the same of a row that comes soon: short stretches of cache no processor foresees.
constexpr int64_t kRowsAhead = 3;

template <class T>
DALLE_AVX512_PART void ask_for(const T* numbers, int64_t row_numbers) {
  _mm_prefetch(reinterpret_cast<const char*>(numbers + kRowsAhead * row_numbers), _MM_HINT_T0);
}

DALLE_AVX512_PART float* store_own(float own, float* scores) {
  _mm512_storeu_ps(scores, _mm512_mask_mov_ps(_mm512_set1_ps(kNotSeen), 1, _mm512_set1_ps(own)));
  return scores + kBlockPositions;
}

DALLE_AVX512_PART void store_seen(__m512 a, __m512 b, const SeenBlock& block, float* scores) {
  const auto seen = static_cast<__mmask16>(block.positions);
  _mm512_storeu_ps(scores, _mm512_mask_add_ps(_mm512_set1_ps(kNotSeen), seen, a, b));
}

DALLE_AVX512_PART __m512 maximum_of(const float* scores, int64_t count) {
  __m512 first = _mm512_loadu_ps(scores), second = first;
  int64_t i = 16;
  for (; i + 32 <= count; i += 32) {
    first = _mm512_max_ps(first, _mm512_loadu_ps(scores + i));
    second = _mm512_max_ps(second, _mm512_loadu_ps(scores + i + 16));
  }
  if (i < count) first = _mm512_max_ps(first, _mm512_loadu_ps(scores + i));
  return _mm512_set1_ps(_mm512_reduce_max_ps(_mm512_max_ps(first, second)));
}

DALLE_AVX512_BF16_PART __m512bh pairs(const uint16_t* x) { return reinterpret_cast<__m512bh>(_mm512_loadu_si512(x)); }

DALLE_AVX512_BF16_PART __m512bh one_pair(const uint16_t* x) {
  int32_t both;
  std::memcpy(&both, x, sizeof both);
  return reinterpret_cast<__m512bh>(_mm512_set1_epi32(both));
}

// 16 V numbers of the values from c on, whose sums stay in registers over all positions.
template <int V>
DALLE_AVX512_PART void add_stretch(const float* weights, const float* own, const BlockCache<float>& values,
                                   std::span<const SeenBlock> blocks, __m512 factor, int64_t c, float* out) {
  __m512 sum[V];
  const __m512 own_weight = _mm512_set1_ps(weights[0]);
  for (int v = 0; v < V; ++v) {
    sum[v] = _mm512_fmadd_ps(own_weight, _mm512_loadu_ps(own + c + 16 * v), _mm512_loadu_ps(out + c + 16 * v));
  }
  weights += kBlockPositions;
  for (const SeenBlock& block : blocks) {
    const float* value = values.data + block.index * values.stride + c;
    for (uint32_t left = block.positions; left != 0; left &= left - 1) {
      const int position = __builtin_ctz(left);
      const __m512 weight = _mm512_set1_ps(weights[position]);
      for (int v = 0; v < V; ++v) {
        ask_for(value + position * values.size + 16 * v, 16 * values.size);
        sum[v] = _mm512_fmadd_ps(weight, _mm512_loadu_ps(value + position * values.size + 16 * v), sum[v]);
      }
    }
    weights += kBlockPositions;
  }
  for (int v = 0; v < V; ++v) _mm512_storeu_ps(out + c + 16 * v, _mm512_mul_ps(sum[v], factor));
}

template <int V>
DALLE_AVX512_BF16_PART void add_stretch(const uint16_t* weights, const float* own, const BlockCache<uint16_t>& values,
                                        std::span<const SeenBlock> blocks, __m512 factor, int64_t c, float* out) {
  __m512 sum[V];
  const __m512 own_weight = _mm512_set1_ps(bf16_to_float(weights[0]));
  for (int v = 0; v < V; ++v) {
    sum[v] = _mm512_fmadd_ps(own_weight, _mm512_loadu_ps(own + c + 16 * v), _mm512_loadu_ps(out + c + 16 * v));
  }
  weights += kBlockPositions;
  for (const SeenBlock& block : blocks) {
    const uint16_t* value = values.data + block.index * values.stride + 2 * c;
    const int first = __builtin_ctz(block.positions) / 2, last = (31 - __builtin_clz(block.positions)) / 2;
    for (int pair = first; pair <= last; ++pair) {
      const __m512bh weight = one_pair(weights + 2 * pair);
      for (int v = 0; v < V; ++v) {
        ask_for(value + pair * 2 * values.size + 32 * v, 16 * values.size);
        sum[v] = _mm512_dpbf16_ps(sum[v], pairs(value + pair * 2 * values.size + 32 * v), weight);
      }
    }
    weights += kBlockPositions;
  }
  for (int v = 0; v < V; ++v) _mm512_storeu_ps(out + c + 16 * v, _mm512_mul_ps(sum[v], factor));
}

}  // namespace

bool has_cache_avx512(bool is_bf16) {
  static const bool has = __builtin_cpu_supports("x86-64-v4") != 0;
  static const bool has_bf16 = has && __builtin_cpu_supports("avx512bf16") != 0;
  return is_bf16 ? has_bf16 : has;
}

DALLE_AVX512_BF16 void avx512_put_key(const float* key, int64_t size, int64_t position, uint16_t* block) {
  int32_t pairs[8];
  int32_t* to = reinterpret_cast<int32_t*>(block) + position;
  for (int64_t c = 0; c < size; c += 16) {
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(pairs),
                        reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_loadu_ps(key + c))));
    for (const int32_t pair : pairs) {
      *to = pair;
      to += kBlockPositions;
    }
  }
}

DALLE_AVX512_BF16 void avx512_put_value(const float* value, int64_t size, int64_t position, uint16_t* block) {
  uint16_t* to = block + position / 2 * (2 * size);
  const bool is_odd = position % 2 != 0;
  for (int64_t c = 0; c < size; c += 16, to += 32) {
    const auto numbers = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(_mm512_loadu_ps(value + c)));
    const __m512i each = _mm512_cvtepu16_epi32(numbers);
    _mm512_mask_storeu_epi16(to, is_odd ? 0xAAAAAAAAu : 0x55555555u, is_odd ? _mm512_slli_epi32(each, 16) : each);
  }
}

DALLE_AVX512 void avx512_own_scores(const float* q, const float* k, int64_t heads, int64_t size, float* scores) {
  for (int64_t head = 0; head < heads; head += 4) {
    __m512 sum[4];
    for (int64_t j = 0; j < 4; ++j) {
      const int64_t at = (head + j < heads ? head + j : heads - 1) * size;
      sum[j] = _mm512_setzero_ps();
      for (int64_t c = 0; c < size; c += 16) {
        sum[j] = _mm512_fmadd_ps(_mm512_loadu_ps(q + at + c), _mm512_loadu_ps(k + at + c), sum[j]);
      }
    }
    const int64_t count = heads - head < 4 ? heads - head : 4;
    _mm_mask_storeu_ps(scores + head, static_cast<__mmask8>((1 << count) - 1), sums_of(sum[0], sum[1], sum[2], sum[3]));
  }
}

// Sums of even and of odd steps: one sum alone would wait for itself.
DALLE_AVX512 void avx512_scores(const float* q, float own, const BlockCache<float>& keys,
                                std::span<const SeenBlock> blocks, float* scores) {
  scores = store_own(own, scores);
  for (const SeenBlock& block : blocks) {
    const float* key = keys.data + block.index * keys.stride;
    __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
    int64_t c = 0;
    for (; c + 2 <= keys.size; c += 2, key += 32) {
      ask_for(key, 16 * keys.size);
      ask_for(key + 16, 16 * keys.size);
      even = _mm512_fmadd_ps(_mm512_loadu_ps(key), _mm512_set1_ps(q[c]), even);
      odd = _mm512_fmadd_ps(_mm512_loadu_ps(key + 16), _mm512_set1_ps(q[c + 1]), odd);
    }
    if (c < keys.size) even = _mm512_fmadd_ps(_mm512_loadu_ps(key), _mm512_set1_ps(q[c]), even);
    store_seen(even, odd, block, scores);
    scores += kBlockPositions;
  }
}

DALLE_AVX512_BF16 void avx512_scores(const uint16_t* q, float own, const BlockCache<uint16_t>& keys,
                                     std::span<const SeenBlock> blocks, float* scores) {
  scores = store_own(own, scores);
  for (const SeenBlock& block : blocks) {
    const uint16_t* key = keys.data + block.index * keys.stride;
    __m512 even = _mm512_setzero_ps(), odd = _mm512_setzero_ps();
    int64_t c = 0;
    for (; c + 4 <= keys.size + 1; c += 4, key += 64) {
      ask_for(key, 16 * keys.size);
      ask_for(key + 32, 16 * keys.size);
      even = _mm512_dpbf16_ps(even, pairs(key), one_pair(q + c));
      odd = _mm512_dpbf16_ps(odd, pairs(key + 32), one_pair(q + c + 2));
    }
    if (c < keys.size) even = _mm512_dpbf16_ps(even, pairs(key), one_pair(q + c));
    store_seen(even, odd, block, scores);
    scores += kBlockPositions;
  }
}

DALLE_AVX512 float avx512_weights(const float* scores, int64_t count, float* weights) {
  const __m512 shift = maximum_of(scores, count);
  __m512 sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < count; i += 16) {
    const __m512 weight = avx512_exp(_mm512_sub_ps(_mm512_loadu_ps(scores + i), shift));
    sum = _mm512_add_ps(sum, weight);
    _mm512_storeu_ps(weights + i, weight);
  }
  return _mm512_reduce_add_ps(sum);
}

DALLE_AVX512_BF16 float avx512_weights(const float* scores, int64_t count, uint16_t* weights) {
  const __m512 shift = maximum_of(scores, count);
  __m512 sum = _mm512_setzero_ps();
  for (int64_t i = 0; i < count; i += 16) {
    const __m512 weight = avx512_exp(_mm512_sub_ps(_mm512_loadu_ps(scores + i), shift));
    sum = _mm512_add_ps(sum, weight);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights + i), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(weight)));
  }
  return _mm512_reduce_add_ps(sum);
}

DALLE_AVX512 void avx512_add(const float* weights, const float* own, const BlockCache<float>& values,
                             std::span<const SeenBlock> blocks, float factor, float* out) {
  const __m512 factors = _mm512_set1_ps(factor);
  int64_t c = 0;
  for (; c + 64 <= values.size; c += 64) add_stretch<4>(weights, own, values, blocks, factors, c, out);
  for (; c + 32 <= values.size; c += 32) add_stretch<2>(weights, own, values, blocks, factors, c, out);
  if (c < values.size) add_stretch<1>(weights, own, values, blocks, factors, c, out);
}

DALLE_AVX512_BF16 void avx512_add(const uint16_t* weights, const float* own, const BlockCache<uint16_t>& values,
                                  std::span<const SeenBlock> blocks, float factor, float* out) {
  const __m512 factors = _mm512_set1_ps(factor);
  int64_t c = 0;
  for (; c + 64 <= values.size; c += 64) add_stretch<4>(weights, own, values, blocks, factors, c, out);
  for (; c + 32 <= values.size; c += 32) add_stretch<2>(weights, own, values, blocks, factors, c, out);
  if (c < values.size) add_stretch<1>(weights, own, values, blocks, factors, c, out);
}

}  // namespace dalle::generation::detail

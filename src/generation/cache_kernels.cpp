#include "dalle/generation/cache_kernels.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "cache_kernels_avx512.h"
#include "dalle/core/bf16.h"
#include "dalle/core/vector_math.h"
#include "dalle/core/vectorise.h"

namespace dalle::generation::detail {
namespace {

constexpr float kNotSeen = -std::numeric_limits<float>::infinity();

DALLE_INLINED bool is_seen(const SeenBlock& block, int64_t position) {
  return ((block.positions >> position) & 1) != 0;
}

DALLE_INLINED float sum_of(const float (&lanes)[kBlockPositions]) {
  float four[4];
  for (int i = 0; i < 4; ++i) four[i] = (lanes[i] + lanes[i + 4]) + (lanes[i + 8] + lanes[i + 12]);
  return (four[0] + four[1]) + (four[2] + four[3]);
}

DALLE_INLINED void hide_unseen(const SeenBlock& block, float* scores) {
  for (int64_t i = 0; i < kBlockPositions; ++i) scores[i] = is_seen(block, i) ? scores[i] : kNotSeen;
}

DALLE_INLINED float* put_own(float own, float* scores) {
  scores[0] = own;
  std::fill_n(scores + 1, kBlockPositions - 1, kNotSeen);
  return scores + kBlockPositions;
}

DALLE_VECTORISED void portable_own_scores(const float* q, const float* k, int64_t heads, int64_t size, float* scores) {
  for (int64_t head = 0; head < heads; ++head, q += size, k += size) {
    float sum[kBlockPositions] = {};
    int64_t c = 0;
    for (; c + kBlockPositions <= size; c += kBlockPositions) {
      for (int64_t i = 0; i < kBlockPositions; ++i) sum[i] += q[c + i] * k[c + i];
    }
    for (int64_t i = 0; c + i < size; ++i) sum[i] += q[c + i] * k[c + i];
    scores[head] = sum_of(sum);
  }
}

DALLE_VECTORISED void portable_scores(const float* q, float own, const BlockCache<float>& keys,
                                      std::span<const SeenBlock> blocks, float* scores) {
  scores = put_own(own, scores);
  for (const SeenBlock& block : blocks) {
    const float* key = keys.data + block.index * keys.stride;
    float sum[kBlockPositions] = {};
    for (int64_t c = 0; c < keys.size; ++c, key += kBlockPositions) {
      for (int64_t i = 0; i < kBlockPositions; ++i) sum[i] += q[c] * key[i];
    }
    std::copy_n(sum, kBlockPositions, scores);
    hide_unseen(block, scores);
    scores += kBlockPositions;
  }
}

DALLE_VECTORISED void portable_scores(const uint16_t* q, float own, const BlockCache<uint16_t>& keys,
                                      std::span<const SeenBlock> blocks, float* scores) {
  scores = put_own(own, scores);
  for (const SeenBlock& block : blocks) {
    const uint16_t* key = keys.data + block.index * keys.stride;
    float sum[kBlockPositions] = {};
    for (int64_t c = 0; c < keys.size; c += 2, key += 2 * kBlockPositions) {
      const float even = bf16_to_float(q[c]), odd = bf16_to_float(q[c + 1]);
      for (int64_t i = 0; i < kBlockPositions; ++i) {
        sum[i] += even * bf16_to_float(key[2 * i]) + odd * bf16_to_float(key[2 * i + 1]);
      }
    }
    std::copy_n(sum, kBlockPositions, scores);
    hide_unseen(block, scores);
    scores += kBlockPositions;
  }
}

DALLE_INLINED float get(float x) { return x; }
DALLE_INLINED float get(uint16_t x) { return bf16_to_float(x); }
DALLE_INLINED float take(float x, float*) { return x; }
DALLE_INLINED uint16_t take(float x, uint16_t*) { return float_to_bf16(x); }

template <class T>
DALLE_INLINED float weights_of(const float* scores, int64_t count, T* weights) {
  float largest[kBlockPositions], sum[kBlockPositions] = {};
  std::copy_n(scores, kBlockPositions, largest);
  for (int64_t at = kBlockPositions; at < count; at += kBlockPositions) {
    for (int64_t i = 0; i < kBlockPositions; ++i)
      largest[i] = scores[at + i] > largest[i] ? scores[at + i] : largest[i];
  }
  const float shift = *std::max_element(largest, largest + kBlockPositions);
  for (int64_t at = 0; at < count; at += kBlockPositions) {
    for (int64_t i = 0; i < kBlockPositions; ++i) {
      const float weight = vector_exp(scores[at + i] - shift);
      weights[at + i] = take(weight, weights);
      sum[i] += weight;
    }
  }
  return sum_of(sum);
}

DALLE_VECTORISED float portable_weights(const float* scores, int64_t count, float* weights) {
  return weights_of(scores, count, weights);
}
DALLE_VECTORISED float portable_weights(const float* scores, int64_t count, uint16_t* weights) {
  return weights_of(scores, count, weights);
}

constexpr int64_t kStretch = 2 * kBlockPositions;  // of a value, whose sums stay in registers over all positions

// f(weights of 2 positions, their values) for each pair of positions of which one is seen.
template <class T, class F>
DALLE_INLINED void over_pairs(const T* weights, const BlockCache<T>& values, std::span<const SeenBlock> blocks, F f) {
  weights += kBlockPositions;  // past the own one
  const int64_t pair_numbers = block_numbers<T>(values.size) / (kBlockPositions / 2);
  for (const SeenBlock& block : blocks) {
    for (int64_t pair = 0; pair < kBlockPositions / 2; ++pair) {
      if (((block.positions >> (2 * pair)) & 3) == 0) continue;
      f(weights + 2 * pair, values.data + block.index * values.stride + pair * pair_numbers);
    }
    weights += kBlockPositions;
  }
}

// The products of two positions with number c of their values.
DALLE_INLINED float pair_product(const float* weight, const float* value, int64_t c, int64_t size) {
  return weight[0] * value[c] + weight[1] * value[size + c];
}
DALLE_INLINED float pair_product(const uint16_t* weight, const uint16_t* value, int64_t c, int64_t) {
  return bf16_to_float(weight[0]) * bf16_to_float(value[2 * c]) +
         bf16_to_float(weight[1]) * bf16_to_float(value[2 * c + 1]);
}

template <class T>
DALLE_INLINED void add_values_of(const T* weights, const float* own, const BlockCache<T>& values,
                                 std::span<const SeenBlock> blocks, float factor, float* out) {
  const int64_t size = values.size;
  for (int64_t c = 0; c < size; ++c) out[c] += get(weights[0]) * own[c];
  int64_t c = 0;
  for (; c + kStretch <= size; c += kStretch) {
    float sum[kStretch];
    std::copy_n(out + c, kStretch, sum);
    over_pairs(weights, values, blocks, [&](const T* weight, const T* value) {
      for (int64_t i = 0; i < kStretch; ++i) sum[i] += pair_product(weight, value, c + i, size);
    });
    for (int64_t i = 0; i < kStretch; ++i) out[c + i] = sum[i] * factor;
  }
  over_pairs(weights, values, blocks, [&](const T* weight, const T* value) {
    for (int64_t rest = c; rest < size; ++rest) out[rest] += pair_product(weight, value, rest, size);
  });
  for (int64_t rest = c; rest < size; ++rest) out[rest] *= factor;
}

DALLE_VECTORISED void portable_add(const float* weights, const float* own, const BlockCache<float>& values,
                                   std::span<const SeenBlock> blocks, float factor, float* out) {
  add_values_of(weights, own, values, blocks, factor, out);
}
DALLE_VECTORISED void portable_add(const uint16_t* weights, const float* own, const BlockCache<uint16_t>& values,
                                   std::span<const SeenBlock> blocks, float factor, float* out) {
  add_values_of(weights, own, values, blocks, factor, out);
}

template <class T>
bool goes_by_avx512(CacheKernels kernels, int64_t size = kBlockPositions) {
  return kernels == CacheKernels::kFastest && size % kBlockPositions == 0 && has_cache_avx512(sizeof(T) == 2);
}

}  // namespace

std::vector<SeenBlock> blocks_of(std::span<const CacheSpan> spans) {
  std::vector<SeenBlock> blocks;
  for (const CacheSpan& span : spans) {
    for (int64_t at = span.begin; at < span.begin + span.size; ++at) {
      const int64_t index = at / kBlockPositions;
      if (blocks.empty() || blocks.back().index != index) blocks.push_back({index, 0});
      blocks.back().positions |= 1u << (at % kBlockPositions);
    }
  }
  return blocks;
}

void put_key(const float* key, int64_t size, int64_t position, float* block, CacheKernels) {
  for (int64_t c = 0; c < size; ++c) block[c * kBlockPositions + position] = key[c];
}

void put_key(const float* key, int64_t size, int64_t position, uint16_t* block, CacheKernels kernels) {
  if (goes_by_avx512<uint16_t>(kernels, size)) return avx512_put_key(key, size, position, block);
  for (int64_t c = 0; c < size; ++c) {
    block[(c / 2 * kBlockPositions + position) * 2 + c % 2] = float_to_bf16(key[c]);
  }
}

void put_value(const float* value, int64_t size, int64_t position, float* block, CacheKernels) {
  std::copy_n(value, size, block + position * size);
}

void put_value(const float* value, int64_t size, int64_t position, uint16_t* block, CacheKernels kernels) {
  if (goes_by_avx512<uint16_t>(kernels, size)) return avx512_put_value(value, size, position, block);
  uint16_t* to = block + position / 2 * (block_numbers<uint16_t>(size) / (kBlockPositions / 2)) + position % 2;
  for (int64_t c = 0; c < size; ++c) to[2 * c] = float_to_bf16(value[c]);
}

void own_scores(const float* q, const float* k, int64_t heads, int64_t size, float* scores, CacheKernels kernels) {
  if (goes_by_avx512<float>(kernels, size)) return avx512_own_scores(q, k, heads, size, scores);
  portable_own_scores(q, k, heads, size, scores);
}

void block_scores(const float* q, float own, const BlockCache<float>& keys, std::span<const SeenBlock> blocks,
                  float* scores, CacheKernels kernels) {
  if (goes_by_avx512<float>(kernels)) return avx512_scores(q, own, keys, blocks, scores);
  portable_scores(q, own, keys, blocks, scores);
}

void block_scores(const uint16_t* q, float own, const BlockCache<uint16_t>& keys, std::span<const SeenBlock> blocks,
                  float* scores, CacheKernels kernels) {
  if (goes_by_avx512<uint16_t>(kernels)) return avx512_scores(q, own, keys, blocks, scores);
  portable_scores(q, own, keys, blocks, scores);
}

float softmax_weights(const float* scores, int64_t count, float* weights, CacheKernels kernels) {
  if (goes_by_avx512<float>(kernels)) return avx512_weights(scores, count, weights);
  return portable_weights(scores, count, weights);
}

float softmax_weights(const float* scores, int64_t count, uint16_t* weights, CacheKernels kernels) {
  if (goes_by_avx512<uint16_t>(kernels)) return avx512_weights(scores, count, weights);
  return portable_weights(scores, count, weights);
}

void add_block_values(const float* weights, const float* own, const BlockCache<float>& values,
                      std::span<const SeenBlock> blocks, float factor, float* out, CacheKernels kernels) {
  if (goes_by_avx512<float>(kernels, values.size)) return avx512_add(weights, own, values, blocks, factor, out);
  portable_add(weights, own, values, blocks, factor, out);
}

void add_block_values(const uint16_t* weights, const float* own, const BlockCache<uint16_t>& values,
                      std::span<const SeenBlock> blocks, float factor, float* out, CacheKernels kernels) {
  if (goes_by_avx512<uint16_t>(kernels, values.size)) return avx512_add(weights, own, values, blocks, factor, out);
  portable_add(weights, own, values, blocks, factor, out);
}

}  // namespace dalle::generation::detail

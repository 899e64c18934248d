// Attention of one row over its cache of image slots, which lies in blocks of 16 positions: for each number, or pair of bf16
// numbers, of a key the 16 positions side by side, so that 16 scores are summed in one register; values as they come in f32,
// and in bf16 two positions interleaved to pairs. Sums have a fixed order, so a row's result depends on nothing but
// the row. bf16 numbers are given by their bits. By AVX-512 where the processor has it, else by plain loops.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "dalle/generation/cache_layout.h"

namespace dalle::generation::detail {

inline constexpr int64_t kBlockPositions = 16;

/// The positions of a block that a slot sees, a bit each; never none.
struct SeenBlock {
  int64_t index = 0;
  uint32_t positions = 0;
  bool operator==(const SeenBlock&) const = default;
};

/// The blocks that hold `spans`, which are in order.
std::vector<SeenBlock> blocks_of(std::span<const CacheSpan> spans);

/// Which loops: kPortable takes the plain ones even where the processor has better.
enum class CacheKernels { kFastest, kPortable };

/// One head of a row: its keys or values of a block are `block_numbers(size)` numbers, the next block's `stride` later.
/// T is float or uint16_t (bf16).
template <class T>
struct BlockCache {
  const T* data;
  int64_t stride;
  int64_t size;  // numbers of a key
};

/// Numbers of a head's keys, or values, in one block: in bf16 a key's odd last number has a partner, which stays 0.
template <class T>
constexpr int64_t block_numbers(int64_t size) {
  return kBlockPositions * (sizeof(T) == 2 ? (size + 1) / 2 * 2 : size);
}

/// Writes a key, or a value, to a position (0 .. 15) of a block, rounded to nearest even in bf16.
void put_key(const float* key, int64_t size, int64_t position, float* block,
             CacheKernels kernels = CacheKernels::kFastest);
void put_key(const float* key, int64_t size, int64_t position, uint16_t* block,
             CacheKernels kernels = CacheKernels::kFastest);
void put_value(const float* value, int64_t size, int64_t position, float* block,
               CacheKernels kernels = CacheKernels::kFastest);
void put_value(const float* value, int64_t size, int64_t position, uint16_t* block,
               CacheKernels kernels = CacheKernels::kFastest);

/// scores[h] = q . k of each of `heads` heads of `size` numbers: what a slot's query and key, which is in no cache yet, give.
void own_scores(const float* q, const float* k, int64_t heads, int64_t size, float* scores,
                CacheKernels kernels = CacheKernels::kFastest);

/// scores[0] = own, then 15 times minus infinity; scores[16 + 16 b + i] = q . key i of the b-th of `blocks`, minus infinity where
/// it is not seen. A query in bf16 ends with a zero where its size is odd.
void block_scores(const float* q, float own, const BlockCache<float>& keys, std::span<const SeenBlock> blocks,
                  float* scores, CacheKernels kernels = CacheKernels::kFastest);
void block_scores(const uint16_t* q, float own, const BlockCache<uint16_t>& keys, std::span<const SeenBlock> blocks,
                  float* scores, CacheKernels kernels = CacheKernels::kFastest);

/// weights = exp(scores - their maximum), of a multiple of 16 scores of which one is finite; returns their sum, in f32. Weights
/// may lie where the scores do.
float softmax_weights(const float* scores, int64_t count, float* weights,
                      CacheKernels kernels = CacheKernels::kFastest);
float softmax_weights(const float* scores, int64_t count, uint16_t* weights,
                      CacheKernels kernels = CacheKernels::kFastest);

/// out = factor (out + weights[0] own + sum over b and i of weights[16 + 16 b + i] value i of the b-th block). Weights of what is
/// not seen are 0.
void add_block_values(const float* weights, const float* own, const BlockCache<float>& values,
                      std::span<const SeenBlock> blocks, float factor, float* out,
                      CacheKernels kernels = CacheKernels::kFastest);
void add_block_values(const uint16_t* weights, const float* own, const BlockCache<uint16_t>& values,
                      std::span<const SeenBlock> blocks, float factor, float* out,
                      CacheKernels kernels = CacheKernels::kFastest);

}  // namespace dalle::generation::detail

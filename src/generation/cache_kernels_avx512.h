// Private to cache_kernels.cpp: its loops by AVX-512, for processors that have it. Values of a multiple of 16 numbers.
#pragma once

#include "dalle/generation/cache_kernels.h"

namespace dalle::generation::detail {

/// Whether this processor has the instructions, for bf16 also their dot products.
bool has_cache_avx512(bool is_bf16);

void avx512_put_key(const float* key, int64_t size, int64_t position, uint16_t* block);
void avx512_put_value(const float* value, int64_t size, int64_t position, uint16_t* block);
void avx512_own_scores(const float* q, const float* k, int64_t heads, int64_t size, float* scores);
void avx512_scores(const float* q, float own, const BlockCache<float>& keys, std::span<const SeenBlock> blocks,
                   float* scores);
void avx512_scores(const uint16_t* q, float own, const BlockCache<uint16_t>& keys, std::span<const SeenBlock> blocks,
                   float* scores);
float avx512_weights(const float* scores, int64_t count, float* weights);
float avx512_weights(const float* scores, int64_t count, uint16_t* weights);
void avx512_add(const float* weights, const float* own, const BlockCache<float>& values,
                std::span<const SeenBlock> blocks, float factor, float* out);
void avx512_add(const uint16_t* weights, const float* own, const BlockCache<uint16_t>& values,
                std::span<const SeenBlock> blocks, float factor, float* out);

}  // namespace dalle::generation::detail

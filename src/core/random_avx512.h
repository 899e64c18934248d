// Private to random.cpp: Philox by AVX-512.
#pragma once

#include "dalle/core/random.h"

namespace dalle::detail {

inline constexpr int64_t kChunk = 64;  // elements of 16 blocks

/// Whether this processor can run the two below.
bool has_random_avx512();

/// out[0 .. 64) = elements 64 chunk .. 64 chunk + 63 of uniform_rows' row of `key`.
void uniform_chunk_avx512(RandomKey key, int64_t chunk, float* out);

/// largest[i] = the largest of chunk `first` + i, for `count` chunks.
void largest_uniforms_avx512(RandomKey key, int64_t first, int64_t count, float* largest);

}  // namespace dalle::detail

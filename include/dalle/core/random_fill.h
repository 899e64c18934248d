// Numbers of a random stream (core/random.h) for loops that look at them without storing a whole row.
#pragma once

#include "dalle/core/random.h"

namespace dalle {

/// Elements offset .. offset + size - 1 of uniform_rows' row of `key`, bit for bit, on the CPU.
void fill_uniform(RandomKey key, int64_t offset, int64_t size, float* out);

/// largest[i] = the largest of elements offset + 64 i .. offset + 64 i + 63 of uniform_rows' row of `key`, of `size` elements
/// altogether (the last stretch may be shorter). Without storing the elements where offset is a multiple of 64.
void largest_uniforms(RandomKey key, int64_t offset, int64_t size, float* largest);

}  // namespace dalle

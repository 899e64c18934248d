// Numbers of a random stream (core/random.h) for loops that look at them without storing a whole row.
#pragma once

#include "dalle/core/random.h"

namespace dalle {

/// Elements offset .. offset + size - 1 of uniform_rows' row of `key`, bit for bit, on the CPU.
void fill_uniform(RandomKey key, int64_t offset, int64_t size, float* out);

}  // namespace dalle

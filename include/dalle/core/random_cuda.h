// The CUDA half of core/random.h. Chosen by CMake: random_cuda.cu, or a stub with the same symbol in builds without CUDA.
// Only core/random.cpp calls it.
#pragma once

#include <cstdint>

#include "dalle/core/tensor.h"

namespace dalle::detail {

/// Fills `out`, contiguous f32 [rows, row_size] on a CUDA device: row r gets elements offset .. offset+row_size-1 of the
/// stream whose seed and stream number are the bit patterns keys[r][0] and keys[r][1]. `keys` is contiguous int64
/// [rows, 2] on the same device. Runs on the current stream without waiting for it. Throws ConfigError in builds
/// without CUDA; requires offset >= 0.
void uniform_rows_cuda(const Tensor& keys, Tensor& out, int64_t offset);

}  // namespace dalle::detail

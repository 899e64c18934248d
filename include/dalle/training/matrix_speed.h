// How fast this machine multiplies matrices and reads memory: what utilisation is a share of. Measured, not looked up, so it
// holds for the threads, the number format and the load that a run has.
#pragma once

#include "dalle/core/tensor.h"

namespace dalle::training {

/// FLOP/s (2 per multiply-add) of the best of several products of square matrices of `dtype` on `device`, with the
/// process's threads. Takes about `seconds`, at least three products.
double measure_matrix_speed(at::Device device, at::ScalarType dtype, double seconds = 0.3);

/// Bytes a second of reading `bytes` of memory again and again from beginning to end, the best of several passes, with the
/// process's CPU threads: from the caches where they hold that much. Takes about `seconds`, at least three passes.
double measure_read_speed(int64_t bytes, double seconds = 0.3);

}  // namespace dalle::training

// Products of a few rows with a matrix whose weights are int8 with a scale for each output, on any device: on a GPU by a kernel
// that reads each weight once for eight rows, elsewhere by LibTorch's operators. CPUs have a faster way in packed_weights.h.
#pragma once

#include "dalle/core/tensor.h"

namespace dalle::layers {

struct Int8Matrix {
  Tensor weight_NK;  // int8, -127 .. 127
  Tensor scale_N;    // f32: a weight is its number times this
};

/// Symmetric rounding to nearest, each output's largest |weight| being 127 levels, as PackedWeights does. weight_NK: f32
/// [N, K]. Throws ValueError where a weight is not finite.
Int8Matrix quantise_outputs(const Tensor& weight_NK);

/// x [M, K] (f32 or bf16, contiguous) times the matrix, f32 [M, N]; sums in f32.
Tensor int8_product(const Tensor& x_MK, const Int8Matrix& matrix);

}  // namespace dalle::layers

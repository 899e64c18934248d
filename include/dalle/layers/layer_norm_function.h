// Layer norm (Ba et al. 2016) that writes the type of the matrix products behind it, and whose gradient reads that type.
#pragma once

#include "dalle/core/tensor.h"

namespace dalle::layers {

/// (x - mean) / sqrt(variance + eps) * weight + bias over the last dimension, in `out_type`. x [..., D], weight and bias [D]
/// of one type, f32 or f64, in which all sums are. Differentiable in all three. From f32 to bf16 on the CPU it is one pass
/// each way; else ATen's, and a change of type. Results do not depend on the number of threads.
Tensor layer_norm(const Tensor& x, const Tensor& weight_D, const Tensor& bias_D, double eps, at::ScalarType out_type);

/// The norm, and its input for the other path of a residual block: their gradients meet in the pass over the norm's.
struct NormAndInput {
  Tensor norm, input;
};
NormAndInput layer_norm_beside(const Tensor& x, const Tensor& weight_D, const Tensor& bias_D, double eps,
                               at::ScalarType out_type);

}  // namespace dalle::layers

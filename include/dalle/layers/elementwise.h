// Elementwise passes of the dVAE's resblocks that ATen would make in two or three, over tensors that do not fit a cache.
// On the CPU f32 and bf16 in channels-last memory in one vectorised pass, in mixed types too; else op by op.
#pragma once

#include "dalle/core/tensor.h"

namespace dalle::layers {

/// max(0, x) in `type`.
Tensor relu_to(const Tensor& x, at::ScalarType type);

/// id + gain * branch in the type of id; [B, C, H, W] both, or with `enlarges` id [B, C, H / 2, W / 2], each of its
/// pixels standing for 2x2 (nearest neighbour).
Tensor residual_sum(const Tensor& id, const Tensor& branch, double gain, bool enlarges = false);

/// (relu_output > 0 ? grad : 0) + other: the gradient of a ReLU joined with that of another path. All of one shape; grad
/// and relu_output of one type; the result has that of `other`. Takes grad's memory where it can.
Tensor mask_and_add(const Tensor& grad, const Tensor& relu_output, const Tensor& other);

}  // namespace dalle::layers

// Elementwise passes that ATen would make in two, over tensors that do not fit a cache.
#pragma once

#include "dalle/core/tensor.h"

namespace dalle::layers {

/// grad = (relu_output > 0 ? grad : 0) + other, in place: the gradient of a ReLU joined with that of another path. All
/// of one shape, layout and type.
void mask_and_add_(Tensor& grad, const Tensor& relu_output, const Tensor& other);

}  // namespace dalle::layers

// Stride-1 "same" convolutions as the dVAE's resblocks use them: with the ReLU that follows fused in where the backend
// can, and with each gradient computed the way that measures best (docs/performance.md).
#pragma once

#include <array>

#include "dalle/core/tensor.h"

namespace dalle::layers {

/// A convolution's kernel [out, in, k, k], k odd, and bias [out], both in the input's type.
struct ConvWeights {
  Tensor w, b;
};

/// conv2d(x) with padding (k - 1) / 2. No gradient is recorded through these three.
Tensor convolve(const Tensor& x_BCHW, const ConvWeights& weights);
/// max(0, convolve(x)).
Tensor convolve_relu(const Tensor& x_BCHW, const ConvWeights& weights);

struct ConvGradients {
  Tensor x, w, b;
};
/// Gradients of convolve(); that of x only where it is asked for. Bias and kernel gradients have the weights' type.
ConvGradients convolve_backward(const Tensor& grad_BCHW, const Tensor& x_BCHW, const Tensor& w, bool wants_x);

/// id(x) + gain * conv_4(relu(conv_3(relu(conv_2(relu(conv_1(relu(x)))))))), where id is a convolution, or the identity
/// for undefined id.w. Forward keeps the four ReLU outputs (and x, where id is a convolution) for the backward pass, and
/// works in place elsewhere. Differentiable in x and all weights.
Tensor resblock(const Tensor& x_BCHW, const ConvWeights& id, const std::array<ConvWeights, 4>& convs, double gain);

}  // namespace dalle::layers

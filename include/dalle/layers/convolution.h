// Stride-1 "same" convolutions: with the ReLU that follows fused in where the backend can, and with each gradient computed
// the way that measures best (docs/performance.md).
#pragma once

#include "dalle/core/tensor.h"

namespace dalle::layers {

/// A convolution's kernel [out, in, k, k], k odd, and bias [out].
struct ConvWeights {
  Tensor w, b;
  ConvWeights to(at::ScalarType type) const { return {w.to(type), b.to(type)}; }
};

/// conv2d(x) with padding (k - 1) / 2, operands and result in x's type; in bf16 on a CPU 3x3 convolutions go by
/// layers/winograd.h where they are large enough. Weights are f32 masters (f64 for f64). No gradient is recorded through
/// these three.
Tensor convolve(const Tensor& x_BCHW, const ConvWeights& weights);
/// max(0, convolve(x)).
Tensor convolve_relu(const Tensor& x_BCHW, const ConvWeights& weights);

struct ConvBackwardOptions {
  double scale = 1;      // gradients of scale * convolve()
  bool wants_x = true;   // else gradients of kernel and bias alone
  Tensor relu_output{};  // where defined, x = relu(its input), and this is x: the gradient is that of the ReLU's input
};
struct ConvGradients {
  Tensor x, w, b;
};
/// Gradients of convolve() with kernel w. That of x has x's type. Those of kernel and bias are summed and returned in f32 for
/// bf16 inputs on a CPU (layers/bf16_product.h); else they have the inputs' type.
ConvGradients convolve_backward(const Tensor& grad_BCHW, const Tensor& x_BCHW, const Tensor& w,
                                const ConvBackwardOptions& options = {});

/// A 1x1 convolution as one matrix product over rows of channels: operands in x's type, result in `out_type`, which for
/// bf16 operands may be f32 without passing through bf16. Differentiable in x and the (f32) weights.
Tensor pointwise(const Tensor& x_BCHW, const ConvWeights& weights, at::ScalarType out_type);

/// convolve() with a 1x1 kernel for f32 x and weights; with AVX-512 bf16 or AMX as three products of bf16 parts, to 2^-16
/// of the result's size. No gradient is recorded.
Tensor pointwise_f32(const Tensor& x_BCHW, const ConvWeights& weights);

}  // namespace dalle::layers

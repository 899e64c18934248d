// 3x3 convolutions in bf16 on the CPU by Winograd's minimal filtering F(2x2, 3x3) (Lavin and Gray, arXiv 1509.09308):
// 16 products of small matrices for each 2x2 pixels in place of 36, forwards and for both gradients. Kernels and pictures are
// transformed in f32 and rounded to bf16 as the products' operands, sums and inverse transforms are f32: the error is
// about twice that of a convolution that rounds kernels and pictures themselves. Results do not depend on the number of
// threads. No gradient is recorded.
#pragma once

#include "dalle/layers/bf16_product.h"

namespace dalle::layers {

/// Whether the two functions below take pictures x and an f32 kernel w [O, I, 3, 3]: x in bf16 on a CPU with
/// has_bf16_products(), even H and W, channels multiples of 32.
bool fits_winograd(const Tensor& x_BCHW, const Tensor& w);

/// conv2d(x, w, b, padding 1), then max(0, .) if `relu`: bf16 [B, O, H, W] in channels-last memory. b [O] f32.
Tensor winograd_convolve(const Tensor& x_BIHW, const Tensor& w, const Tensor& b, bool relu);

/// scale times the gradient of sum(grad * conv2d(x, w, padding 1)) in x; where `relu_output` [B, I, H, W] (bf16) is defined,
/// zero where that is zero.
Tensor winograd_input_gradient(const Tensor& grad_BOHW, const Tensor& w, double scale, const Tensor& relu_output = {});

/// Whether the function below takes these and is faster than conv_kernel_gradients(): 3x3 kernels, pictures as above, at least
/// 64 channels each.
bool fits_winograd_kernel_gradients(const Tensor& grad_BOHW, const Tensor& x_BIHW, int64_t kernel);

/// The gradients of sum(grad * (conv2d(x, w, padding 1) + b)) in w and b, for pictures as above.
KernelGradients winograd_kernel_gradients(const Tensor& grad_BOHW, const Tensor& x_BIHW);

}  // namespace dalle::layers

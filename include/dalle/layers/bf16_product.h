// Products of bf16 matrices with f32 accumulation on the CPU, and the gradient of a convolution's kernel as such
// products. Blocked around small tiles (tile_product.h: oneDNN's on AMX, own ones on AVX-512's bf16 dot products), which run
// at the processor's limit where BLAS calls on transposed operands reach half of it (docs/performance.md).
// Results do not depend on the number of threads.
#pragma once

#include <optional>

#include "dalle/core/tensor.h"

namespace dalle::layers {

/// Whether this processor has the instructions. The functions below are to be called only where it has, and where their
/// operands fit: see each.
bool has_bf16_products();

/// Whether product_nt() and product_nn() take a and b: matrices on a CPU with the instructions, a in bf16, b in bf16 or in f32
/// (rounded as it is read), rows contiguous, the summed length a multiple of 32 and the result's columns of 16.
bool fits_bf16_product(const Tensor& a, const Tensor& b, int64_t summed, int64_t columns);

/// a b^T (+ bias) (+ addend): [M, K] x [N, K] -> [M, N] in `out_type` (bf16 or f32); bias [N] f32, addend [M, N] f32
/// for f32 results. What a linear layer does.
Tensor product_nt(const Tensor& a_MK, const Tensor& b_NK, at::ScalarType out_type,
                  const std::optional<Tensor>& bias_N = {}, const Tensor& addend_MN = {});

/// a b^T (+ bias) for f32 matrices with contiguous rows, to about 2^-16 of the result's size: each number is the sum of
/// two of bf16, and three of the four products of these are computed. K a multiple of 32, N of 16.
Tensor product_nt_f32(const Tensor& a_MK, const Tensor& b_NK, const std::optional<Tensor>& bias_N = {});

/// a b (+ bias) (+ addend): [M, K] x [K, N] -> [M, N]. What its input's gradient is, or the layer itself with a weight that lies
/// transposed in memory.
Tensor product_nn(const Tensor& a_MK, const Tensor& b_KN, at::ScalarType out_type,
                  const std::optional<Tensor>& bias_N = {}, const Tensor& addend_MN = {});

/// A right-hand side in the order of the kernels, for several products with it. Takes as much memory as the matrix in bf16.
struct PackedMatrix {
  int64_t depth = 0, columns = 0;
  Tensor data;
};
PackedMatrix pack_nt(const Tensor& b_NK);
PackedMatrix pack_nn(const Tensor& b_KN);

/// What becomes of a finished sum besides its bias, before it is rounded: GELU by the error function, or x sigmoid(1.702 x).
enum class Epilogue { kNone, kGelu, kQuickGelu };

/// product_nt() or product_nn() with what was packed. Epilogues other than kNone give bf16.
Tensor product(const Tensor& a_MK, const PackedMatrix& b, at::ScalarType out_type,
               const std::optional<Tensor>& bias_N = {}, Epilogue epilogue = Epilogue::kNone);
/// sum [M, N] (f32, contiguous) += a b (+ bias).
void add_product(Tensor& sum_MN, const Tensor& a_MK, const PackedMatrix& b, const std::optional<Tensor>& bias_N = {});

/// Whether conv_kernel_gradients() takes these: bf16 on a CPU with the instructions, channels multiples of 16, even W, and
/// H W a multiple of 32.
bool fits_conv_kernel_gradients(const Tensor& grad_BOHW, const Tensor& x_BIHW);

/// Of sum(grad * (conv2d(x, w, padding (kernel - 1) / 2) + b)), in f32.
struct KernelGradients {
  Tensor w;  // [O, I, kernel, kernel] in channels-last memory
  Tensor b;  // [O]
};

/// Inputs bf16; those not in channels-last memory are copied. For kernel = 1 these are a linear layer's gradients.
KernelGradients conv_kernel_gradients(const Tensor& grad_BOHW, const Tensor& x_BIHW, int64_t kernel);

/// A linear layer's gradients from rows: w [O, I] and b [O] of grad_NO (sum over n of grad[n, o] x[n, i]); N a multiple of
/// 32, O and I of 16. With `sum_OI`, f32 and contiguous, that is what the product is added to, and the result's w.
bool fits_linear_gradients(const Tensor& grad_NO, const Tensor& x_NI);
KernelGradients linear_gradients(const Tensor& grad_NO, const Tensor& x_NI, const Tensor& sum_OI = {});

}  // namespace dalle::layers

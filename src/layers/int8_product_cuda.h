// Private to int8_product.cpp. Chosen by CMake: int8_product_cuda.cu, or a stub in builds without CUDA.
#pragma once

#include "dalle/core/tensor.h"

namespace dalle::layers::detail {

/// Numbers of the depth that a thread reads at once: K must be a multiple of it.
inline constexpr int64_t kInt8Stretch = 16;

/// int8_product() on a GPU: contiguous x (f32 or bf16) and weights, `out` f32 [M, N]. Runs on the current stream.
void int8_product_cuda(const Tensor& x_MK, const Tensor& weight_NK, const Tensor& scale_N, Tensor& out_MN);

}  // namespace dalle::layers::detail

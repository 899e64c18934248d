#include "dalle/layers/int8_product.h"

#include <ATen/ATen.h>

#include "int8_product_cuda.h"

namespace dalle::layers {

Int8Matrix quantise_outputs(const Tensor& weight_NK) {
  constexpr double kLevels = 127;
  TORCH_CHECK_VALUE(weight_NK.dim() == 2 && weight_NK.scalar_type() == at::kFloat,
                    "[int8 product] expected an f32 matrix, got ", weight_NK.toString(), " ", weight_NK.sizes());
  const Tensor largest_N1 = weight_NK.abs().amax(1, /*keepdim=*/true);
  TORCH_CHECK_VALUE(largest_N1.isfinite().all().item<bool>(), "[int8 product] weights that are not finite");
  const Tensor inverse_N1 = at::where(largest_N1.eq(0), at::zeros_like(largest_N1), kLevels / largest_N1);
  return {(weight_NK * inverse_N1).round_().to(at::kChar).contiguous(), largest_N1.squeeze(1) / kLevels};
}

Tensor int8_product(const Tensor& x_MK, const Int8Matrix& matrix) {
  const int64_t depth = matrix.weight_NK.size(1);
  TORCH_CHECK_VALUE(x_MK.dim() == 2 && x_MK.size(1) == depth && x_MK.is_contiguous() &&
                        (x_MK.scalar_type() == at::kFloat || x_MK.scalar_type() == at::kBFloat16),
                    "[int8 product] expected contiguous f32 or bf16 rows of ", depth, ", got ", x_MK.toString(), " ",
                    x_MK.sizes());
  if (!x_MK.is_cuda() || depth % detail::kInt8Stretch != 0) {
    return at::matmul(x_MK.to(at::kFloat), matrix.weight_NK.to(at::kFloat).t()).mul_(matrix.scale_N);
  }
  Tensor out_MN = at::empty({x_MK.size(0), matrix.weight_NK.size(0)}, x_MK.options().dtype(at::kFloat));
  detail::int8_product_cuda(x_MK, matrix.weight_NK, matrix.scale_N, out_MN);
  return out_MN;
}

}  // namespace dalle::layers

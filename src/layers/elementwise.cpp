#include "dalle/layers/elementwise.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "dalle/core/bf16.h"

namespace dalle::layers {
namespace {

#define DALLE_VECTORISED [[gnu::target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")]]

DALLE_VECTORISED void mask_and_add_bf16(uint16_t* grad, const uint16_t* relu_output, const uint16_t* other,
                                        int64_t size) {
  for (int64_t i = 0; i < size; ++i) {
    const float masked = (relu_output[i] & 0x7FFFu) == 0 ? 0.0f : bf16_to_float(grad[i]);
    grad[i] = float_to_bf16(masked + bf16_to_float(other[i]));
  }
}

DALLE_VECTORISED void mask_and_add_f32(float* grad, const float* relu_output, const float* other, int64_t size) {
  for (int64_t i = 0; i < size; ++i) grad[i] = (relu_output[i] == 0 ? 0.0f : grad[i]) + other[i];
}

bool same_layout(const Tensor& a, const Tensor& b) {
  return a.sizes() == b.sizes() && a.strides() == b.strides() && a.scalar_type() == b.scalar_type();
}

}  // namespace

void mask_and_add_(Tensor& grad, const Tensor& relu_output, const Tensor& other) {
  const bool fits = grad.is_cpu() && grad.is_non_overlapping_and_dense() && same_layout(grad, relu_output) &&
                    same_layout(grad, other);
  const auto type = grad.scalar_type();
  if (!fits || (type != at::kBFloat16 && type != at::kFloat)) {
    at::threshold_backward_out(grad, grad, relu_output, 0);
    grad.add_(other);
    return;
  }
  constexpr int64_t kGrain = 1 << 15;
  at::parallel_for(0, grad.numel(), kGrain, [&](int64_t begin, int64_t end) {
    const auto at = [begin](const Tensor& x) {
      return static_cast<const char*>(x.const_data_ptr()) + begin * static_cast<int64_t>(x.element_size());
    };
    char* out = static_cast<char*>(grad.mutable_data_ptr()) + begin * static_cast<int64_t>(grad.element_size());
    if (type == at::kFloat) {
      mask_and_add_f32(reinterpret_cast<float*>(out), reinterpret_cast<const float*>(at(relu_output)),
                       reinterpret_cast<const float*>(at(other)), end - begin);
    } else {
      mask_and_add_bf16(reinterpret_cast<uint16_t*>(out), reinterpret_cast<const uint16_t*>(at(relu_output)),
                        reinterpret_cast<const uint16_t*>(at(other)), end - begin);
    }
  });
}

}  // namespace dalle::layers

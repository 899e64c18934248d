#include "dalle/layers/activation.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include "dalle/core/avx512_math.h"
#include "dalle/core/bf16.h"
#include "dalle/core/vector_math.h"
#include "dalle/core/vectorise.h"
#include "dalle/layers/bf16_product.h"

namespace dalle::layers {
namespace {

using Bf16 = uint16_t;
constexpr double kQuickSlope = 1.702;
constexpr int64_t kStep = 16;  // rows below are multiples of this long

DALLE_VECTORISED void gelu_row(const Bf16* x, int64_t size, Bf16* out) {
  for (int64_t i = 0; i < size; ++i) out[i] = float_to_bf16(vector_gelu(bf16_to_float(x[i])));
}
DALLE_VECTORISED void quick_gelu_row(const Bf16* x, int64_t size, Bf16* out) {
  for (int64_t i = 0; i < size; ++i) out[i] = float_to_bf16(vector_quick_gelu(bf16_to_float(x[i])));
}
DALLE_VECTORISED void gelu_gradient_row(const Bf16* grad, const Bf16* x, int64_t size, Bf16* value, Bf16* out) {
  for (int64_t i = 0; i < size; ++i) {
    const ValueAndSlope gelu = vector_gelu_and_slope(bf16_to_float(x[i]));
    value[i] = float_to_bf16(gelu.value);
    out[i] = float_to_bf16(bf16_to_float(grad[i]) * gelu.slope);
  }
}
DALLE_VECTORISED void quick_gelu_gradient_row(const Bf16* grad, const Bf16* x, int64_t size, Bf16* value, Bf16* out) {
  for (int64_t i = 0; i < size; ++i) {
    const ValueAndSlope gelu = vector_quick_gelu_and_slope(bf16_to_float(x[i]));
    value[i] = float_to_bf16(gelu.value);
    out[i] = float_to_bf16(bf16_to_float(grad[i]) * gelu.slope);
  }
}

DALLE_AVX512_BF16_PART __m512 load(const Bf16* x) {
  const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(x));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16));
}

DALLE_AVX512_BF16_PART void store(__m512 x, Bf16* out) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(out), reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x)));
}

// What gelu_row() and gelu_gradient_row() give.
DALLE_AVX512_BF16 void gelu_avx512(const Bf16* x, int64_t size, Bf16* out) {
  for (int64_t i = 0; i < size; i += kStep) store(avx512_gelu_and_slope(load(x + i)).value, out + i);
}
DALLE_AVX512_BF16 void gelu_gradient_avx512(const Bf16* grad, const Bf16* x, int64_t size, Bf16* value, Bf16* out) {
  for (int64_t i = 0; i < size; i += kStep) {
    const Avx512ValueAndSlope gelu = avx512_gelu_and_slope(load(x + i));
    store(gelu.value, value + i);
    store(_mm512_mul_ps(load(grad + i), gelu.slope), out + i);
  }
}

using Row = void (*)(const Bf16* x, int64_t size, Bf16* out);
using GradientRow = void (*)(const Bf16* grad, const Bf16* x, int64_t size, Bf16* value, Bf16* out);

Row row_of(Activation activation) {
  if (activation == Activation::kQuickGelu) return quick_gelu_row;
  return has_bf16_products() ? gelu_avx512 : gelu_row;
}
GradientRow gradient_row_of(Activation activation) {
  if (activation == Activation::kQuickGelu) return quick_gelu_gradient_row;
  return has_bf16_products() ? gelu_gradient_avx512 : gelu_gradient_row;
}

bool fits(const Tensor& x) {
  return x.is_cpu() && x.scalar_type() == at::kBFloat16 && x.is_contiguous() && x.numel() % kStep == 0;
}

const Bf16* bits(const Tensor& x) { return static_cast<const Bf16*>(x.const_data_ptr()); }
Bf16* mutable_bits(const Tensor& x) { return static_cast<Bf16*>(x.mutable_data_ptr()); }

// Calls run(first, size) for stretches of `size` numbers.
template <class Run>
void for_stretches(int64_t size, const Run& run) {
  at::parallel_for(0, size / kStep, 1 << 10,
                   [&](int64_t begin, int64_t end) { run(begin * kStep, (end - begin) * kStep); });
}

}  // namespace

Tensor activate(const Tensor& x, Activation activation) {
  const c10::NoGradGuard no_grad;
  if (fits(x)) {
    const Tensor out = at::empty_like(x);
    const Row row = row_of(activation);
    for_stretches(x.numel(), [&](int64_t i, int64_t size) { row(bits(x) + i, size, mutable_bits(out) + i); });
    return out;
  }
  return activation == Activation::kGelu ? at::gelu(x) : x * at::sigmoid(x * kQuickSlope);
}

ActivationGradient activate_backward(const Tensor& grad, const Tensor& x, Activation activation) {
  const c10::NoGradGuard no_grad;
  if (fits(x) && fits(grad)) {
    const ActivationGradient out{at::empty_like(x), at::empty_like(x)};
    const GradientRow row = gradient_row_of(activation);
    for_stretches(x.numel(), [&](int64_t i, int64_t size) {
      row(bits(grad) + i, bits(x) + i, size, mutable_bits(out.value) + i, mutable_bits(out.grad) + i);
    });
    return out;
  }
  if (activation == Activation::kGelu) return {at::gelu(x), at::gelu_backward(grad, x)};
  const Tensor sigmoid = at::sigmoid(x * kQuickSlope), value = x * sigmoid;
  return {value, grad * (sigmoid + value * (1 - sigmoid) * kQuickSlope)};
}

}  // namespace dalle::layers

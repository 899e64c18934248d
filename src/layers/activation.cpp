#include "dalle/layers/activation.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

namespace dalle::layers {
namespace {

constexpr double kQuickSlope = 1.702;

}  // namespace

Tensor activate(const Tensor& x, Activation activation) {
  const c10::NoGradGuard no_grad;
  return activation == Activation::kGelu ? at::gelu(x) : x * at::sigmoid(x * kQuickSlope);
}

ActivationGradient activate_backward(const Tensor& grad, const Tensor& x, Activation activation) {
  const c10::NoGradGuard no_grad;
  if (activation == Activation::kGelu) return {at::gelu(x), at::gelu_backward(grad, x)};
  const Tensor sigmoid = at::sigmoid(x * kQuickSlope), value = x * sigmoid;
  return {value, grad * (sigmoid + value * (1 - sigmoid) * kQuickSlope)};
}

}  // namespace dalle::layers

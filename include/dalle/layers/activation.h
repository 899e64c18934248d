// The MLP's nonlinearity and its gradient, for functions that make both themselves (layers/linear_function.h).
#pragma once

#include "dalle/core/enum_names.h"
#include "dalle/core/tensor.h"

namespace dalle::layers {

/// x Phi(x) with the exact normal distribution, or x sigmoid(1.702 x) (Hendrycks and Gimpel 2016; OpenAI's CLIP).
enum class Activation { kGelu, kQuickGelu };

/// act(x), of x's shape and type. No gradient is recorded.
Tensor activate(const Tensor& x, Activation activation);

/// act(x) again, and grad * act'(x), both in x's type; x and grad of one shape and type.
struct ActivationGradient {
  Tensor value, grad;
};
ActivationGradient activate_backward(const Tensor& grad, const Tensor& x, Activation activation);

}  // namespace dalle::layers

namespace dalle {
template <>
struct EnumNames<layers::Activation> {
  static constexpr EnumName<layers::Activation> values[] = {{layers::Activation::kGelu, "gelu"},
                                                            {layers::Activation::kQuickGelu, "quick_gelu"}};
};
}  // namespace dalle

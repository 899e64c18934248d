// Activations and their gradients against their definitions in f64.
#include "dalle/layers/activation.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "support/random_tensor.h"
#include "support/tensor_matchers.h"

namespace dalle::layers {
namespace {

using testing::close_to;
using testing::random_tensor;

Tensor by_definition(const Tensor& x, Activation activation) {
  return activation == Activation::kGelu ? x * 0.5 * at::erfc(x / -std::sqrt(2.0)) : x / (1 + at::exp(-1.702 * x));
}

Tensor slope_by_definition(const Tensor& x, Activation activation) {
  const Tensor leaf = x.detach().requires_grad_();
  by_definition(leaf, activation).sum().backward();
  return leaf.grad();
}

constexpr Activation kActivations[] = {Activation::kGelu, Activation::kQuickGelu};

TEST(Activation, IsWhatItsNameSays) {
  const Tensor x = at::linspace(-4, 4, 33, at::kDouble), grad = random_tensor(1, {33}).to(at::kDouble);
  for (const Activation activation : kActivations) {
    EXPECT_TRUE(close_to(activate(x, activation), by_definition(x, activation), 1e-12));
    const auto backward = activate_backward(grad, x, activation);
    EXPECT_TRUE(close_to(backward.value, by_definition(x, activation), 1e-12));
    EXPECT_TRUE(close_to(backward.grad, grad * slope_by_definition(x, activation), 1e-12));
  }
}

TEST(Activation, Bf16IsTheExactValueRounded) {
  const Tensor x = at::linspace(-6, 6, 2001, at::kDouble).to(at::kBFloat16), exact = x.to(at::kDouble);
  for (const Activation activation : kActivations) {
    const auto backward = activate_backward(at::full_like(x, -3), x, activation);
    EXPECT_EQ(backward.grad.scalar_type(), at::kBFloat16);
    EXPECT_TRUE(close_to(activate(x, activation), by_definition(exact, activation), 3e-3));
    EXPECT_TRUE(at::equal(backward.value, activate(x, activation)));
    EXPECT_TRUE(close_to(backward.grad, slope_by_definition(exact, activation) * -3, 1e-2));
  }
}

}  // namespace
}  // namespace dalle::layers

// Activations and their gradients against their definitions in f64.
#include "dalle/layers/activation.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <utility>

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
  // 2,000 numbers go through loops of this project's own, 2,001 through ATen's.
  for (const auto& [activation, size] :
       {std::pair{kActivations[0], 2000}, {kActivations[0], 2001}, {kActivations[1], 2000}, {kActivations[1], 2001}}) {
    const Tensor x = at::linspace(-6, 6, size, at::kDouble).to(at::kBFloat16), exact = x.to(at::kDouble);
    const auto backward = activate_backward(at::full_like(x, -3), x, activation);
    EXPECT_EQ(backward.grad.scalar_type(), at::kBFloat16);
    EXPECT_TRUE(close_to(activate(x, activation), by_definition(exact, activation), 3e-3));
    EXPECT_TRUE(at::equal(backward.value, activate(x, activation)));
    EXPECT_TRUE(close_to(backward.grad, slope_by_definition(exact, activation) * -3, 1e-2));
  }
}

TEST(Activation, Bf16KeepsWhatIsNotFinite) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  Tensor x = at::full({32}, 100.0, at::kBFloat16);
  x[3] = std::numeric_limits<float>::quiet_NaN();
  x[20] = kInfinity;
  x[21] = -100;
  for (const Activation activation : kActivations) {
    const auto backward = activate_backward(at::ones_like(x), x, activation);
    for (const Tensor& value : {activate(x, activation), backward.value}) {
      EXPECT_TRUE(std::isnan(value[3].item<float>()));
      EXPECT_EQ(value[20].item<float>(), kInfinity);
      EXPECT_NEAR(value[21].item<float>(), 0, 1e-30);
      EXPECT_EQ(value[0].item<float>(), 100);
    }
    EXPECT_TRUE(std::isnan(backward.grad[3].item<float>()));
    EXPECT_EQ(backward.grad[0].item<float>(), 1);
    EXPECT_NEAR(backward.grad[21].item<float>(), 0, 1e-30);
  }
}

}  // namespace
}  // namespace dalle::layers

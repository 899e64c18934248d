// Token cross-entropy against PyTorch's values and gradients.
#include "dalle/layers/cross_entropy.h"

#include <gtest/gtest.h>

#include "support/golden.h"
#include "support/tensor_matchers.h"

namespace dalle::layers {
namespace {

using testing::close_to;

TEST(CrossEntropy, ValuesAndGradientMatchPyTorch) {
  const testing::Golden golden("transformer.safetensors");
  const Tensor logits = golden.at("ce.logits").clone().requires_grad_(), targets = golden.at("ce.targets");
  EXPECT_TRUE(close_to(cross_entropy_each(logits, targets), golden.at("ce.each"), 1e-5));
  const Tensor sum = cross_entropy_sum(logits, targets);
  EXPECT_TRUE(close_to(sum, golden.at("ce.sum"), 1e-5));
  sum.backward();
  EXPECT_TRUE(close_to(logits.grad(), golden.at("grad.ce.logits"), 1e-5));
  // Positions without a target get exactly nothing.
  EXPECT_EQ(logits.grad().select(0, 0).select(0, 1).abs().max().item<double>(), 0);
  EXPECT_EQ(cross_entropy_each(logits, targets).select(0, 2).select(0, 4).item<double>(), 0);
}

TEST(CrossEntropy, UniformLogitsGiveLnVAndNoTargetsGiveZero) {
  const Tensor targets = at::arange(6, at::kLong).view({2, 3});
  EXPECT_NEAR(cross_entropy_sum(at::zeros({2, 3, 8192}), targets).item<double>(), 6 * 9.010913, 1e-4);
  EXPECT_NEAR(cross_entropy_sum(at::zeros({2, 3, 16384}), targets).item<double>(), 6 * 9.704061, 1e-4);
  EXPECT_NEAR(cross_entropy_sum(at::zeros({2, 3, 16640}), targets).item<double>(), 6 * 9.719565, 1e-4);
  EXPECT_EQ(cross_entropy_sum(at::randn({2, 3, 7}), at::full({2, 3}, -1, at::kLong)).item<double>(), 0);
}

TEST(CrossEntropy, IsComputedInF32EvenForBf16Logits) {
  const Tensor logits = (at::randn({4, 50}) * 5).to(at::kBFloat16), targets = at::arange(4, at::kLong);
  const Tensor sum = cross_entropy_sum(logits, targets);
  EXPECT_EQ(sum.scalar_type(), at::kFloat);
  EXPECT_TRUE(close_to(sum, cross_entropy_sum(logits.to(at::kFloat), targets), 1e-6));
}

}  // namespace
}  // namespace dalle::layers

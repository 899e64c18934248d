// Gradient scaling per residual block: the gradients of plain backward where nothing overflows, and one block's alone where
// it does.
#include "dalle/layers/scaled_runner.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "dalle/layers/checkpoint_runner.h"
#include "dalle/layers/transformer.h"
#include "support/random_tensor.h"
#include "support/tensor_matchers.h"

namespace dalle::layers {
namespace {

using testing::bitwise_equal;
using testing::close_to;
using testing::random_tensor;

/// 3, 3^2, 3^3, ...: no powers of two, so a scale that is not divided again shows.
Tensor scale_of(int64_t index) { return at::scalar_tensor(std::pow(3.0, index + 1), at::kDouble); }

struct Stack : Module {
  Stack() : transformer(*this, "t", {.dim = 16, .num_heads = 2, .num_layers = 2, .compute_dtype = at::kDouble}) {
    materialize(at::kCPU);
    initialize(0);
    for (const auto& [name, parameter] : named_parameters()) {
      parameter->tensor = parameter->tensor.detach().to(at::kDouble).requires_grad_();
    }
  }
  Transformer transformer;
};

struct Gradients {
  Tensor input;
  std::map<std::string, Tensor> parameters;
};

Gradients gradients(Stack& stack, BlockRunner& runner) {
  for (const auto& [name, parameter] : stack.named_parameters()) parameter->tensor.mutable_grad() = Tensor();
  Tensor x = random_tensor(2, {2, 5, 16}).to(at::kDouble).requires_grad_();
  const auto attend = [](int64_t) { return dense_attention(Tensor()); };
  (stack.transformer.forward(x, attend, runner).square() * 1e-3).sum().backward();
  Gradients out{.input = x.grad()};
  for (const auto& [name, parameter] : stack.named_parameters()) out.parameters[name] = parameter->tensor.grad();
  return out;
}

int64_t block_of_parameter(const std::string& name) {
  const int64_t layer = name[std::string("t.resblocks.").size()] - '0';
  const bool is_mlp = name.find("ln_2") != std::string::npos || name.find("mlp") != std::string::npos;
  return 2 * layer + (is_mlp ? 1 : 0);
}

TEST(ScaledRunner, GivesThePlainGradientsAndScaledOnesToItsBlocksParameters) {
  Stack stack;
  const Gradients plain = gradients(stack, plain_runner());
  CheckpointRunner checkpointed;
  ScaledRunner scaled(scale_of), both(scale_of, checkpointed);
  for (BlockRunner* runner : {static_cast<BlockRunner*>(&scaled), static_cast<BlockRunner*>(&both)}) {
    const Gradients actual = gradients(stack, *runner);
    EXPECT_TRUE(close_to(actual.input, plain.input, 1e-14));
    for (const auto& [name, expected] : plain.parameters) {
      const double scale = scale_of(block_of_parameter(name)).item<double>();
      EXPECT_TRUE(close_to(actual.parameters.at(name) / scale, expected, 1e-14)) << name;
    }
  }
}

TEST(ScaledRunner, ChangesNoBitOfTheForwardPass) {
  ScaledRunner runner(scale_of);
  const auto block = [](const Tensor& x) { return x + x.sin(); };
  const Tensor x = random_tensor(1, {50}).requires_grad_();
  EXPECT_TRUE(bitwise_equal(runner.run(0, x, block), block(x)));
  const c10::NoGradGuard no_grad;
  EXPECT_FALSE(runner.run(0, x, block).requires_grad());
}

/// x + f(x) with f in fp16.
std::function<Tensor(const Tensor&)> half_block(const Tensor& weight) {
  return [weight](const Tensor& x) { return x + (x.to(at::kHalf) * weight.to(at::kHalf)).to(at::kFloat); };
}

TEST(ScaledRunner, AnOverflowTakesOnlyTheBlocksOwnPartAway) {
  std::vector<Tensor> weights;
  for (uint64_t i = 0; i < 3; ++i) weights.push_back((0.5 * random_tensor(10 + i, {64})).requires_grad_());
  const std::vector<float> scales{4, 0x1p24f, 2};  // the second is more than fp16 holds
  ScaledRunner runner([&](int64_t index) { return at::scalar_tensor(scales[static_cast<size_t>(index)]); });
  const auto run = [&](BlockRunner& used, bool without_second) {
    for (Tensor& weight : weights) weight.mutable_grad() = Tensor();
    Tensor x = random_tensor(1, {64}).requires_grad_(), y = x;
    for (size_t i = 0; i < 3; ++i) {
      if (i == 1 && without_second) {
        y = y + half_block(weights[i])(y.detach()) -
            y.detach();  // the value of the block, the gradient of the identity
      } else {
        y = used.run(static_cast<int64_t>(i), y, half_block(weights[i]));
      }
    }
    y.sum().backward();
    return x.grad();
  };
  const Tensor expected = run(plain_runner(), true);
  const Tensor first = weights[0].grad().clone(), third = weights[2].grad().clone();
  const Tensor actual = run(runner, false);
  EXPECT_TRUE(close_to(actual, expected, 2e-3));  // fp16's rounding
  EXPECT_TRUE(close_to(weights[0].grad() / scales[0], first, 2e-3));
  EXPECT_TRUE(close_to(weights[2].grad() / scales[2], third, 2e-3));
  EXPECT_FALSE(weights[1].grad().isfinite().all().item<bool>());  // by which the scale is known to be too large
}

TEST(ScaledRunner, ScalesKeepSmallGradientsFromFp16sUnderflow) {
  const Tensor weight = at::ones({8}).requires_grad_(), x = at::ones({8}).requires_grad_();
  constexpr float kTiny = 0x1p-30f;  // 0 in fp16
  (half_block(weight)(x) * kTiny).sum().backward();
  EXPECT_TRUE(at::equal(weight.grad(), at::zeros({8})));
  weight.mutable_grad() = x.mutable_grad() = Tensor();
  ScaledRunner runner([](int64_t) { return at::scalar_tensor(0x1p20f); });
  (runner.run(0, x, half_block(weight)) * kTiny).sum().backward();
  EXPECT_TRUE(at::equal(weight.grad() / 0x1p20f, at::full({8}, kTiny)));
  EXPECT_TRUE(at::equal(x.grad(), at::full({8}, 2 * kTiny)));
}

TEST(ScaledRunner, WhatIsNotFiniteStaysOnTheIdentityPathAndOutOfTheBlock) {
  const Tensor weight = at::full({3}, 2.0f).requires_grad_();
  Tensor x = at::ones({3}).requires_grad_();
  ScaledRunner runner([](int64_t) { return at::scalar_tensor(16.0f); });
  const Tensor y = runner.run(0, x, half_block(weight));
  y.backward(at::tensor({1.0f, INFINITY, NAN}));
  EXPECT_TRUE(at::equal(weight.grad(), at::tensor({16.0f, 0.0f, 0.0f})));
  EXPECT_EQ(x.grad()[0].item<float>(), 3);
  EXPECT_TRUE(std::isinf(x.grad()[1].item<float>()));
  EXPECT_TRUE(std::isnan(x.grad()[2].item<float>()));
}

TEST(ScaledRunner, ParametersGetGradientsWhereTheInputNeedsNone) {
  ScaledRunner runner([](int64_t) { return at::scalar_tensor(8.0f); });
  const Tensor weight = at::full({3}, 2.0f).requires_grad_();
  runner.run(0, at::ones({3}), [weight](const Tensor& x) { return x + x * weight; }).sum().backward();
  EXPECT_TRUE(at::equal(weight.grad(), at::full({3}, 8.0f)));
}

TEST(ScaledRunner, AnObserverSeesWhatEntersTheBlock) {
  ScaledRunner runner([](int64_t index) { return at::scalar_tensor(index == 0 ? 8.0f : 2.0f); });
  std::vector<std::pair<int64_t, float>> seen;
  runner.observe([&](int64_t index, const Tensor& scaled) { seen.emplace_back(index, scaled[0].item<float>()); });
  Tensor x = at::ones({3}).requires_grad_();
  for (int64_t i = 0; i < 2; ++i) x = runner.run(i, x, [](const Tensor& in) { return in + in * 2; });
  (x * 5).sum().backward();
  EXPECT_EQ(seen, (std::vector<std::pair<int64_t, float>>{{1, 10.0f}, {0, 120.0f}}));
}

TEST(ScaledRunner, ABlockOfAnotherShapeIsNamed) {
  ScaledRunner runner([](int64_t) { return at::scalar_tensor(8.0f); });
  const Tensor x = at::ones({3}).requires_grad_();
  const Tensor y = runner.run(0, x, [](const Tensor& in) { return at::cat({in, in}); });
  EXPECT_THROW(y.sum().backward(), c10::ValueError);
}

}  // namespace
}  // namespace dalle::layers

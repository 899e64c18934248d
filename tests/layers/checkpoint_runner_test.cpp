// Activation checkpointing: the same numbers, less memory.
#include "dalle/layers/checkpoint_runner.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include "dalle/core/tensor_memory.h"
#include "dalle/layers/dvae_blocks.h"
#include "dalle/layers/transformer.h"
#include "support/random_tensor.h"
#include "support/tensor_matchers.h"

namespace dalle::layers {
namespace {

struct Encoder : Module {
  explicit Encoder(const DvaeBlockOptions& options) : encoder(*this, "encoder", options) {
    materialize(at::kCPU);
    initialize(3);
  }
  DvaeEncoder encoder;
};

constexpr DvaeBlockOptions kSmall{.num_groups = 2, .num_blocks_per_group = 2, .hidden_dim = 16, .vocab_size = 12};

std::vector<Tensor> gradients(Encoder& model, BlockRunner& runner) {
  for (const auto& [name, parameter] : model.named_parameters()) {
    parameter->tensor.mutable_grad() = Tensor();
    parameter->tensor.requires_grad_();
  }
  model.encoder.forward(testing::random_tensor(1, {2, 3, 16, 16}), runner).square().sum().backward();
  std::vector<Tensor> out;
  for (const auto& [name, parameter] : model.named_parameters()) out.push_back(parameter->tensor.grad());
  return out;
}

TEST(CheckpointRunner, GivesTheSameGradientsBitForBit) {
  Encoder model(kSmall);
  CheckpointRunner checkpointed;
  const auto expected = gradients(model, plain_runner()), actual = gradients(model, checkpointed);
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) EXPECT_TRUE(testing::bitwise_equal(actual[i], expected[i])) << i;
}

TEST(CheckpointRunner, ComputesEachBlockTwiceAndKeepsOnlyItsInput) {
  CheckpointRunner runner;
  int calls = 0;
  const auto block = [&calls](const Tensor& x) {
    ++calls;
    return x.sin().cos().exp();
  };
  const Tensor x = testing::random_tensor(1, {1 << 16}).requires_grad_();
  const auto peak = [&](BlockRunner& used) {
    return peak_tensor_bytes([&] {
      Tensor y = x;
      for (int64_t i = 0; i < 8; ++i) y = used.run(i, y, block);
    });
  };
  const int64_t plain = peak(plain_runner()), less = peak(runner);
  EXPECT_EQ(calls, 16);
  const int64_t array = 4 << 16;
  EXPECT_GE(plain, 16 * array);  // two in each block, and its result
  EXPECT_LE(less, 10 * array);   // each block's input, and the two that the last one computes with
  calls = 0;
  runner.run(0, x, block).sum().backward();
  EXPECT_EQ(calls, 2);
  const Tensor y = x.detach().requires_grad_();
  block(y).sum().backward();
  EXPECT_TRUE(testing::bitwise_equal(x.grad(), y.grad()));
}

TEST(CheckpointRunner, ParametersGetGradientsWhereTheInputNeedsNone) {
  CheckpointRunner runner;
  const Tensor weight = at::full({3}, 2.0f).requires_grad_();
  runner.run(0, at::ones({3}), [weight](const Tensor& x) { return x * weight; }).sum().backward();
  EXPECT_TRUE(at::equal(weight.grad(), at::ones({3})));
}

TEST(CheckpointRunner, WithoutGradientsItOnlyCalls) {
  const c10::NoGradGuard no_grad;
  CheckpointRunner runner;
  EXPECT_FALSE(runner.run(0, at::ones({3}), [](const Tensor& x) { return x + 1; }).requires_grad());
}

TEST(CheckpointRunner, ATransformersAttentionOutlivesTheForwardPass) {
  struct Stack : Module {
    Stack() : transformer(*this, "t", {.dim = 16, .num_heads = 2, .num_layers = 2}) {
      materialize(at::kCPU);
      initialize(0);
    }
    Transformer transformer;
  } stack;
  const auto gradient = [&](BlockRunner& runner) {
    Tensor x = testing::random_tensor(2, {1, 4, 16}).requires_grad_();
    stack.transformer
        .forward(
            x, [](int64_t) { return dense_attention(Tensor()); }, runner)
        .square()
        .sum()
        .backward();
    return x.grad();
  };
  CheckpointRunner checkpointed;
  EXPECT_TRUE(testing::bitwise_equal(gradient(checkpointed), gradient(plain_runner())));
}

}  // namespace
}  // namespace dalle::layers

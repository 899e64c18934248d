// Transformer blocks: PyTorch's values and gradients, names, the block runner, bf16.
#include "dalle/layers/transformer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "dalle/layers/attention_mask.h"
#include "support/golden.h"
#include "support/runners.h"
#include "support/tensor_matchers.h"

namespace dalle::layers {
namespace {

using testing::close_to;

/// Names as in a stack: "resblocks.0...".
struct Stack : Module {
  explicit Stack(const TransformerOptions& options) : transformer(*this, "t", options) {}
  Transformer transformer;
};

const TransformerOptions kSmall{.dim = 16, .num_heads = 4, .num_layers = 3};

TEST(Transformer, BlockMatchesPyTorch) {
  const testing::Golden golden("transformer.safetensors");
  for (const Activation activation : {Activation::kGelu, Activation::kQuickGelu}) {
    for (const bool masked : {true, false}) {
      const std::string key = str(enum_name(activation), masked ? ".masked" : ".open");
      Stack stack({.dim = 16, .num_heads = 4, .num_layers = 1, .activation = activation});
      testing::load_golden(stack.transformer, golden);
      const auto attend =
          dense_attention(masked ? mask_to_bias(golden.at("visible").to(at::kBool), at::kFloat) : Tensor());
      const Tensor x = golden.at("input").clone().requires_grad_();
      const Tensor out = stack.transformer.forward(
          x, [&](int64_t) { return attend; }, plain_runner());
      EXPECT_TRUE(close_to(out, golden.at(key + ".output"), 1e-5)) << key;
      (out * golden.at("loss_weight")).sum().backward();
      EXPECT_TRUE(close_to(x.grad(), golden.at(str("grad.", key, ".input")), 1e-5)) << key;
      for (const auto& [name, parameter] : stack.transformer.named_parameters()) {
        EXPECT_TRUE(close_to(parameter->tensor.grad(), golden.at(str("grad.", key, ".", name)), 1e-5)) << key << name;
      }
    }
  }
}

TEST(Transformer, ParameterNamesAreClips) {
  Stack stack({.dim = 8, .num_heads = 2, .num_layers = 2});
  std::vector<std::string> expected, actual;
  for (const char* layer : {"0", "1"}) {
    for (const char* name : {"attn.in_proj_weight", "attn.in_proj_bias", "attn.out_proj.weight", "attn.out_proj.bias",
                             "ln_1.weight", "ln_1.bias", "ln_2.weight", "ln_2.bias", "mlp.c_fc.weight", "mlp.c_fc.bias",
                             "mlp.c_proj.weight", "mlp.c_proj.bias"}) {
      expected.push_back(str("t.resblocks.", layer, ".", name));
    }
  }
  for (const auto& [name, parameter] : stack.named_parameters()) actual.push_back(name);
  EXPECT_THAT(actual, ::testing::UnorderedElementsAreArray(expected));
  EXPECT_EQ(stack.num_parameters(), 2 * (12 * 8 * 8 + 13 * 8));  // 12 d^2 + 13 d each
}

TEST(Transformer, EveryResblockGoesThroughTheRunnerInOrder) {
  Stack stack(kSmall);
  stack.materialize(at::kCPU);
  stack.initialize(0);
  const Tensor x = at::randn({1, 4, 16});
  const auto attend_of = [](int64_t) { return dense_attention({}); };
  testing::RecordingRunner runner;
  const Tensor out = stack.transformer.forward(x, attend_of, runner);
  EXPECT_THAT(runner.indices, ::testing::ElementsAre(0, 1, 2, 3, 4, 5));
  EXPECT_TRUE(testing::bitwise_equal(out, stack.transformer.forward(x, attend_of, plain_runner())));
  testing::RecordingRunner shifted;
  stack.transformer.forward(x, attend_of, shifted, /*first_layer=*/5);
  EXPECT_THAT(shifted.indices, ::testing::ElementsAre(10, 11, 12, 13, 14, 15));
  for (int64_t index = 0; index < 6; ++index) {
    testing::HalvingRunner halving(index);
    EXPECT_FALSE(at::equal(stack.transformer.forward(x, attend_of, halving), out)) << index;
  }
}

TEST(Transformer, EachLayerGetsItsOwnAttention) {
  Stack stack(kSmall);
  stack.materialize(at::kCPU);
  stack.initialize(0);
  std::vector<int64_t> asked;
  stack.transformer.forward(
      at::randn({1, 4, 16}),
      [&](int64_t layer) {
        asked.push_back(layer);
        return dense_attention({});
      },
      plain_runner());
  EXPECT_THAT(asked, ::testing::ElementsAre(0, 1, 2));
}

TEST(Transformer, Bf16IsNearF32AndKeepsTheResidualStreamInF32) {
  at::manual_seed(0);
  Stack full(kSmall);
  TransformerOptions options = kSmall;
  options.compute_dtype = at::kBFloat16;
  Stack half(options);
  for (Stack* stack : {&full, &half}) {
    stack->materialize(at::kCPU);
    stack->initialize(0);
  }
  const Tensor x = at::randn({2, 9, 16}), mask = causal_mask(9);
  const auto run = [&](const Stack& stack, at::ScalarType dtype) {
    return stack.transformer.forward(
        x, [&](int64_t) { return dense_attention(mask_to_bias(mask, dtype)); }, plain_runner());
  };
  const Tensor out = run(half, at::kBFloat16);
  EXPECT_EQ(out.scalar_type(), at::kFloat);
  EXPECT_TRUE(close_to(out, run(full, at::kFloat), 2e-2));
  EXPECT_FALSE(at::equal(out, run(full, at::kFloat)));
  out.sum().backward();
  for (const auto& [name, parameter] : half.named_parameters()) {
    EXPECT_EQ(parameter->tensor.grad().scalar_type(), at::kFloat) << name;
  }
}

TEST(Transformer, InitialisationFollowsTheOptions) {
  Stack stack({.dim = 64, .num_heads = 4, .num_layers = 2, .init_std_scale = 0.5, .residual_init_scale = 0.25});
  stack.materialize(at::kCPU);
  stack.initialize(0);
  const auto& block = *stack.transformer.resblocks[1];
  const auto expect_std = [](const Parameter& parameter, double expected) {
    const double n = static_cast<double>(parameter.tensor.numel());
    EXPECT_NEAR(parameter.tensor.std().item<double>(), expected, 5 * expected / std::sqrt(2 * n)) << parameter.name;
  };
  expect_std(block.attn.in_proj_weight, 0.5 / 8);
  expect_std(block.attn.out_proj.weight, 0.5 / 8 * 0.25);
  expect_std(block.mlp.c_fc.weight, 0.5 / 8);
  expect_std(block.mlp.c_proj.weight, 0.5 / 16 * 0.25);
  EXPECT_EQ(block.attn.in_proj_bias.tensor.abs().max().item<double>(), 0);
  EXPECT_TRUE(at::equal(block.ln_1.weight.tensor, at::ones({64})));
}

}  // namespace
}  // namespace dalle::layers

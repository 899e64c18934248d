// Leaf modules against the ATen functions they stand for, in f32 and bf16.
#include "dalle/layers/leaf.h"

#include <gtest/gtest.h>

#include "support/tensor_matchers.h"

namespace dalle::layers {
namespace {

using testing::bitwise_equal;
using testing::close_to;

struct Leaves : Module {
  Linear linear{*this, "linear", {.in = 6, .out = 4, .init = Init::normal(0.5)}};
  Linear no_bias{*this, "no_bias", {.in = 6, .out = 4, .bias = false, .init = Init::normal(0.5)}};
  Embedding embedding{*this, "embedding", 9, 5, 0.7};
  LayerNorm norm{*this, "norm", 6};
  Conv2d conv{*this, "conv", {.in = 3, .out = 8, .kernel = 5}};
  Conv2d pointwise{*this, "pointwise", {.in = 3, .out = 8}};
  Leaves() {
    at::manual_seed(5);
    materialize(at::kCPU);
    initialize(5);
    for (const auto& [name, parameter] : named_parameters()) {  // no bias 0, no gain 1
      parameter->tensor.detach().add_(at::randn(parameter->tensor.sizes()), 0.1);
    }
  }
};

TEST(Leaf, LinearIsXTimesWTransposedPlusB) {
  Leaves leaves;
  const Tensor x = at::randn({2, 3, 6});
  const Tensor w = leaves.linear.weight.tensor, b = leaves.linear.bias->tensor;
  EXPECT_TRUE(close_to(leaves.linear.forward(x), at::matmul(x, w.t()) + b, 1e-6));
  EXPECT_EQ(leaves.no_bias.bias, nullptr);
  EXPECT_TRUE(close_to(leaves.no_bias.forward(x), at::matmul(x, leaves.no_bias.weight.tensor.t()), 1e-6));
}

TEST(Leaf, TheInputsTypeIsTheComputeTypeAndWeightsStayF32) {
  Leaves leaves;
  leaves.set_requires_grad(true);
  const Tensor x = at::randn({5, 6}), image = at::randn({2, 3, 7, 7});
  const Tensor y = leaves.linear.forward(x.to(at::kBFloat16)), z = leaves.conv.forward(image.to(at::kBFloat16));
  EXPECT_EQ(y.scalar_type(), at::kBFloat16);
  EXPECT_EQ(z.scalar_type(), at::kBFloat16);
  EXPECT_TRUE(close_to(y, leaves.linear.forward(x), 2e-2));
  EXPECT_TRUE(close_to(z, leaves.conv.forward(image), 2e-2));
  (y.to(at::kFloat).sum() + z.to(at::kFloat).sum()).backward();
  for (const auto* parameter : {&leaves.linear.weight, leaves.linear.bias, &leaves.conv.w, &leaves.conv.b}) {
    EXPECT_EQ(parameter->tensor.scalar_type(), at::kFloat) << parameter->name;
    EXPECT_EQ(parameter->tensor.grad().scalar_type(), at::kFloat) << parameter->name;
  }
}

TEST(Leaf, EmbeddingLooksUpIdsOfAnyShape) {
  Leaves leaves;
  const Tensor ids = at::tensor({4, 0, 8, 4, 1, 1}, at::kLong).view({3, 2});
  const Tensor out = leaves.embedding.forward(ids);
  EXPECT_TRUE(bitwise_equal(out, leaves.embedding.weight.tensor.index_select(0, ids.flatten()).view({3, 2, 5})));
}

TEST(Leaf, LayerNormIsInF32WhateverComesIn) {
  Leaves leaves;
  const Tensor x = at::randn({4, 6}) * 3 + 100;
  const Tensor mean = x.to(at::kDouble).mean(-1, true), centred = x.to(at::kDouble) - mean;
  const Tensor expected =
      centred / at::sqrt(centred.square().mean(-1, true) + 1e-5) * leaves.norm.weight.tensor + leaves.norm.bias.tensor;
  EXPECT_TRUE(close_to(leaves.norm.forward(x), expected, 1e-5));
  const Tensor half = at::randn({4, 6}).to(at::kBFloat16);
  EXPECT_EQ(leaves.norm.forward(half).scalar_type(), at::kFloat);
  EXPECT_TRUE(close_to(leaves.norm.forward(half), leaves.norm.forward(half.to(at::kFloat)), 1e-6));
}

TEST(Leaf, ConvKeepsTheSizeAndEqualsItsDefinition) {
  Leaves leaves;
  const Tensor x = at::randn({1, 3, 6, 5}), y = leaves.conv.forward(x);
  ASSERT_EQ(y.sizes(), (std::vector<int64_t>{1, 8, 6, 5}));
  const Tensor padded = at::constant_pad_nd(x.to(at::kDouble), {2, 2, 2, 2});
  const Tensor w = leaves.conv.w.tensor.detach().to(at::kDouble);
  Tensor expected = leaves.conv.b.tensor.detach().to(at::kDouble).view({1, 8, 1, 1}).expand({1, 8, 6, 5}).clone();
  for (int64_t row = 0; row < 6; ++row) {
    for (int64_t column = 0; column < 5; ++column) {
      const Tensor window = padded.slice(2, row, row + 5).slice(3, column, column + 5);
      expected.select(3, column).select(2, row) += (window * w).sum({1, 2, 3}).unsqueeze(0);
    }
  }
  EXPECT_TRUE(close_to(y, expected, 1e-5));
  EXPECT_EQ(leaves.pointwise.forward(x).sizes(), (std::vector<int64_t>{1, 8, 6, 5}));
}

TEST(Leaf, ConvStartsAsTheRelease) {
  struct One : Module {
    Conv2d conv{*this, "conv", {.in = 32, .out = 64, .kernel = 3}};
  } one;
  one.materialize(at::kCPU);
  one.initialize(0);
  const double std = 1 / std::sqrt(32 * 9.0), n = 64 * 32 * 9;
  EXPECT_NEAR(one.conv.w.tensor.std().item<double>(), std, 5 * std / std::sqrt(2 * n));
  EXPECT_TRUE(at::equal(one.conv.b.tensor, at::zeros({64})));
}

}  // namespace
}  // namespace dalle::layers

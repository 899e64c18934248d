// Packed blocks beside the plain ones that training runs, in bf16.
#include "dalle/layers/packed_transformer.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <numeric>

#include "dalle/layers/attention_mask.h"
#include "dalle/layers/inference_rows.h"
#include "support/random_tensor.h"
#include "support/tensor_matchers.h"

namespace dalle::layers {
namespace {

using testing::bitwise_equal;
using testing::close_to;

std::shared_ptr<const BlockSparsePlan> plan_of(const Tensor& visible_LL) {
  std::vector<int64_t> order(static_cast<size_t>(visible_LL.size(0)));
  std::iota(order.begin(), order.end(), int64_t{0});
  return std::make_shared<BlockSparsePlan>(make_block_sparse_plan(visible_LL, order));
}

struct Tower {
  explicit Tower(Activation activation, int64_t num_layers = 3) {
    const TransformerOptions options{.dim = 64,
                                     .num_heads = 2,
                                     .num_layers = num_layers,
                                     .activation = activation,
                                     .init_std_scale = 1.5,
                                     .compute_dtype = at::kBFloat16};
    transformer.emplace(root, "transformer", options);
    root.materialize(at::kCPU);
    root.initialize(5);
    at::manual_seed(1);
    for (const auto& [name, parameter] : root.named_parameters()) {
      if (parameter->tensor.dim() == 1) parameter->tensor.detach().add_(at::randn_like(parameter->tensor) * 0.3);
    }
    root.set_requires_grad(false);
  }
  Module root;
  std::optional<Transformer> transformer;
};

/// What the plain blocks give at one position of each sequence.
Tensor plain(const Tower& tower, const Tensor& x_BLD, const Tensor& bias_LL, const Tensor& position_B) {
  const auto attend = dense_attention(bias_LL);
  const Tensor out = tower.transformer->forward(
      x_BLD, [&](int64_t) { return attend; }, plain_runner());
  return out.index({at::arange(x_BLD.size(0)), position_B});
}

class PackedTransformerTest : public ::testing::TestWithParam<Activation> {
 protected:
  void SetUp() override {
    if (!has_bf16_products()) GTEST_SKIP() << "no bf16 products on this processor";
  }
};

TEST_P(PackedTransformerTest, GivesWhatThePlainBlocksGive) {
  const c10::NoGradGuard no_grad;
  const Tower tower(GetParam());
  const PackedTransformer packed(*tower.transformer);
  at::manual_seed(2);
  for (const int64_t length : {1, 17, 50}) {
    const Tensor x = at::randn({5, length, 64}), before = x.clone();
    const Tensor first = at::zeros({5}, at::kLong), all = at::full({5}, length - 1, at::kLong);
    const Tensor dense = packed.forward(x, plan_of(at::ones({length, length}, at::kBool)), first, all);
    EXPECT_TRUE(close_to(dense, plain(tower, x, {}, first), 2e-2)) << length;
    const Tensor end = at::tensor({int64_t{0}, length / 2, length - 1, length / 3, length - 1}, at::kLong);
    const Tensor causal = packed.forward(x, plan_of(causal_mask(length)), end, end);
    const Tensor expected = plain(tower, x, mask_to_bias(causal_mask(length), at::kBFloat16), end);
    EXPECT_TRUE(close_to(causal, expected, 2e-2)) << length;
    EXPECT_TRUE(bitwise_equal(x, before)) << "the input is left alone";
  }
}

/// Root of the mean square of the difference, by that of the expected.
double rms_error(const Tensor& actual, const Tensor& expected) {
  return ((actual - expected).norm() / expected.norm()).item<double>();
}

TEST_P(PackedTransformerTest, ActivationsDiffer) {
  const c10::NoGradGuard no_grad;
  const Tower tower(GetParam(), 1),
      other(GetParam() == Activation::kGelu ? Activation::kQuickGelu : Activation::kGelu, 1);
  for (const Tower* each : {&tower, &other}) {
    const Mlp& mlp = each->transformer->resblocks[0]->mlp;
    mlp.c_fc.bias->tensor.sub_(2);  // there one is 1.4 times the other
    mlp.c_proj.weight.tensor.mul_(4);
  }
  at::manual_seed(2);
  const Tensor x = at::randn({4, 17, 64}), last = at::full({4}, 16, at::kLong);
  const Tensor ours =
      PackedTransformer(*tower.transformer).forward(x, plan_of(at::ones({17, 17}, at::kBool)), last, last);
  EXPECT_LT(3 * rms_error(ours, plain(tower, x, {}, last)), rms_error(ours, plain(other, x, {}, last)));
}

INSTANTIATE_TEST_SUITE_P(Activations, PackedTransformerTest,
                         ::testing::Values(Activation::kGelu, Activation::kQuickGelu));

TEST(PackedLinear, EpiloguesAreTheirFormulas) {
  if (!has_bf16_products()) GTEST_SKIP() << "no bf16 products on this processor";
  at::manual_seed(3);
  const Tensor weight = at::randn({48, 40}) * 0.5, bias = at::randn({48});  // 40: padded to 64
  const Tensor x = (at::randn({70, 40}) * 2).to(at::kBFloat16);
  const PackedLinear packed(weight, bias);
  EXPECT_EQ(packed.depth(), 64);
  const Tensor exact = at::linear(x.to(at::kDouble), weight.to(at::kBFloat16).to(at::kDouble), bias.to(at::kDouble));
  EXPECT_TRUE(close_to(packed.forward(x, at::kFloat), exact, 1e-6));
  EXPECT_GT(exact.max().item<double>(), 8) << "tails of the activations are seen";
  EXPECT_LT(exact.min().item<double>(), -8);
  const auto rounded = [](const Tensor& value) { return value.to(at::kBFloat16).to(at::kDouble); };
  const auto expect = [&](Epilogue epilogue, const Tensor& value) {
    const Tensor ours = packed.forward(x, at::kBFloat16, epilogue).to(at::kDouble);
    EXPECT_LE((ours - rounded(value)).abs().div(rounded(value).abs() + 1e-3).max().item<double>(), 1.0 / 120);
  };
  expect(Epilogue::kNone, exact);
  expect(Epilogue::kGelu, at::gelu(exact));
  expect(Epilogue::kQuickGelu, exact * at::sigmoid(1.702 * exact));
  Tensor sum = at::randn({70, 48});
  const Tensor expected = sum.to(at::kDouble) + exact;
  packed.add_to(sum, x);
  EXPECT_TRUE(close_to(sum, expected, 1e-6));
}

TEST(PackedTransformer, OnlyPlainBlocksFit) {
  const auto fits = [](const TransformerOptions& options) {
    Module root;
    const Transformer transformer(root, "t", options);
    root.materialize(at::kCPU);
    return PackedTransformer::fits(transformer);
  };
  EXPECT_EQ(fits({.dim = 64, .num_heads = 2, .num_layers = 1}), has_bf16_products());
  EXPECT_FALSE(fits({.dim = 48, .num_heads = 2, .num_layers = 1}));
  EXPECT_FALSE(fits({.dim = 64, .num_heads = 2, .num_layers = 0}));
  EXPECT_FALSE(fits({.dim = 64, .num_heads = 2, .num_layers = 1, .sandwich_norm = true}));
  EXPECT_FALSE(fits({.dim = 64, .num_heads = 2, .num_layers = 1, .qk_norm = true}));
}

}  // namespace
}  // namespace dalle::layers

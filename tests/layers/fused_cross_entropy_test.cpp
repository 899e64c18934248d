// The head and its loss in one step against logits and loss in two.
#include "dalle/layers/fused_cross_entropy.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "dalle/core/tensor_memory.h"
#include "dalle/layers/cross_entropy.h"
#include "support/random_tensor.h"
#include "support/tensor_matchers.h"

namespace dalle::layers {
namespace {

using testing::random_tensor;

struct Leaves {
  Tensor hidden, weight, bias, targets;
};

Leaves make(int64_t rows, int64_t dim, int64_t vocab, at::ScalarType type, bool has_bias = true) {
  const auto leaf = [&](uint64_t seed, at::IntArrayRef sizes, double scale) {
    return (random_tensor(seed, sizes) * scale).to(at::kBFloat16).to(type).requires_grad_();
  };
  Tensor targets = (random_tensor(4, {rows}).abs() * 1000).to(at::kLong).remainder(vocab);
  targets.slice(0, 1, rows, 5).fill_(-1);
  return {leaf(1, {rows, dim}, 1), leaf(2, {vocab, dim}, 0.3), has_bias ? leaf(3, {vocab}, 1) : Tensor(), targets};
}

double error(const Tensor& actual, const Tensor& expected) {
  return ((actual.to(at::kDouble) - expected).abs().max() / expected.abs().max()).item<double>();
}

constexpr double kScale = 0.125;

// {loss, gradients of hidden, weight, bias}
std::vector<Tensor> results(const Leaves& leaves, const Tensor& loss, double factor) {
  (loss * factor).backward();
  std::vector<Tensor> all{loss.detach(), leaves.hidden.grad(), leaves.weight.grad()};
  if (leaves.bias.defined()) all.push_back(leaves.bias.grad());
  return all;
}

std::vector<Tensor> in_two_steps(const Leaves& leaves, double factor) {
  const auto bias = leaves.bias.defined() ? std::optional<Tensor>(leaves.bias) : std::nullopt;
  return results(leaves, cross_entropy_sum(at::linear(leaves.hidden, leaves.weight, bias), leaves.targets) * kScale,
                 factor);
}

// One stretch and several, of logits and of gradients, whole tiles and not.
constexpr int64_t kSizes[][3] = {{64, 32, 64}, {37, 20, 50}, {300, 32, 32768}, {290, 33, 20000}};

TEST(LinearCrossEntropy, IsTheLossOfTheLogits) {
  for (const auto& [rows, dim, vocab] : kSizes) {
    for (const double factor : {1.0, -0.5}) {
      const auto exact = in_two_steps(make(rows, dim, vocab, at::kDouble), factor);
      for (const auto& [type, compute, bound] : {std::tuple{at::kDouble, at::kDouble, 1e-12},
                                                 {at::kFloat, at::kFloat, 1e-5},
                                                 {at::kFloat, at::kBFloat16, 1e-2}}) {
        const Leaves leaves = make(rows, dim, vocab, type);
        const auto actual = results(
            leaves, linear_cross_entropy(leaves.hidden, leaves.weight, leaves.bias, leaves.targets, compute, kScale),
            factor);
        for (size_t i = 0; i < exact.size(); ++i) {
          EXPECT_EQ(actual[i].scalar_type(), type);
          // All operands fit bf16, so that the loss itself has f32's error on the tiles.
          const double here = i == 0 && compute == at::kBFloat16 && dim % 32 == 0 && vocab % 32 == 0 ? 1e-5 : bound;
          EXPECT_LT(error(actual[i], exact[i]), here) << i << " " << rows << " " << vocab << " " << compute;
        }
      }
    }
  }
}

TEST(LinearCrossEntropy, EachRowsLoss) {
  const Leaves leaves = make(300, 32, 32768, at::kFloat);
  const Tensor exact = cross_entropy_each(
      at::linear(leaves.hidden.to(at::kDouble), leaves.weight.to(at::kDouble), leaves.bias.to(at::kDouble)),
      leaves.targets);
  for (const auto compute : {at::kFloat, at::kBFloat16}) {
    const Tensor each = linear_cross_entropy_each(leaves.hidden, leaves.weight, leaves.bias, leaves.targets, compute);
    EXPECT_FALSE(each.requires_grad());
    EXPECT_LT(error(each, exact), 1e-5);
    EXPECT_TRUE(at::equal(each == 0, leaves.targets < 0));
  }
}

TEST(LinearCrossEntropy, NeedsNoBias) {
  const auto exact = in_two_steps(make(64, 32, 64, at::kDouble, /*has_bias=*/false), 1);
  const Leaves leaves = make(64, 32, 64, at::kFloat, /*has_bias=*/false);
  const auto actual =
      results(leaves, linear_cross_entropy(leaves.hidden, leaves.weight, {}, leaves.targets, at::kFloat, kScale), 1);
  for (size_t i = 0; i < exact.size(); ++i) EXPECT_LT(error(actual[i], exact[i]), 1e-5);
}

TEST(LinearCrossEntropy, TheLogitsNeverExistAsAWhole) {
  const Leaves leaves = make(2048, 32, 16384, at::kFloat);
  const int64_t logits_bytes = 2048 * 16384 * 4;
  for (const auto compute : {at::kFloat, at::kBFloat16}) {
    const int64_t peak = peak_tensor_bytes([&] {
      linear_cross_entropy(leaves.hidden, leaves.weight, leaves.bias, leaves.targets, compute, kScale).backward();
    });
    EXPECT_LT(peak, logits_bytes / 3);
  }
}

TEST(LinearCrossEntropy, RefusesOtherShapesAndTargets) {
  const Leaves leaves = make(64, 32, 64, at::kFloat);
  const auto loss = [&](const Tensor& weight, const Tensor& targets) {
    return linear_cross_entropy(leaves.hidden, weight, leaves.bias, targets, at::kFloat);
  };
  EXPECT_THROW(loss(leaves.weight.slice(1, 1), leaves.targets), c10::ValueError);
  EXPECT_THROW(loss(leaves.weight, leaves.targets.slice(0, 1)), c10::ValueError);
  EXPECT_THROW(loss(leaves.weight, at::full({64}, 64, at::kLong)), c10::ValueError);
}

}  // namespace
}  // namespace dalle::layers

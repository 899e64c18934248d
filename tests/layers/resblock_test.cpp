// The resblock as one differentiable step against ATen op by op.
#include "dalle/layers/resblock.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "support/random_tensor.h"
#include "support/tensor_matchers.h"

namespace dalle::layers {
namespace {

using testing::close_to;
using testing::random_tensor;

struct Case {
  const char* name;
  int64_t in, out, size;
  std::array<int64_t, 4> kernels;
  bool wants_x = true;
  bool enlarges = false;
};

// Up to 1024 positions (2 x 9 x 9) and more (2 x 24 x 24): the ways to a kernel's gradient.
constexpr Case kCases[] = {{"encoder, identity", 8, 8, 9, {3, 3, 3, 1}},
                           {"encoder, wider", 8, 16, 24, {3, 3, 3, 1}},
                           {"decoder, identity", 8, 8, 24, {1, 3, 3, 3}},
                           {"decoder, narrower", 16, 8, 9, {1, 3, 3, 3}},
                           {"decoder, narrower, enlarging", 16, 8, 12, {1, 3, 3, 3}, true, true},
                           {"decoder, identity, enlarging", 8, 8, 5, {1, 3, 3, 3}, true, true},
                           {"input without gradient", 8, 8, 9, {3, 3, 3, 1}, false}};

struct Block {
  Tensor x;
  ConvWeights id;
  std::array<ConvWeights, 4> convs;
  ResblockOptions options;
  std::vector<Tensor> leaves;
};

Block make_block(const Case& c, at::ScalarType x_type, at::ScalarType weight_type, at::ScalarType compute) {
  uint64_t seed = 1;
  Block block;
  const auto leaf = [&](at::IntArrayRef shape, double scale, at::ScalarType type) {
    // All values fit bf16, so that every type sees the same block.
    Tensor t = (random_tensor(seed++, shape) * scale).to(at::kBFloat16).to(type);
    if (shape.size() == 4) t = t.contiguous(at::MemoryFormat::ChannelsLast);
    block.leaves.push_back(t.requires_grad_());
    return t;
  };
  const auto conv = [&](int64_t in, int64_t out, int64_t kernel) {
    return ConvWeights{
        leaf({out, in, kernel, kernel}, 1 / std::sqrt(static_cast<double>(in * kernel * kernel)), weight_type),
        leaf({out}, 0.1, weight_type)};
  };
  block.x = leaf({2, c.in, c.size, c.size}, 1, x_type);
  if (!c.wants_x) block.x.requires_grad_(false);
  if (c.in != c.out) block.id = conv(c.in, c.out, 1);
  const int64_t inner = c.out / 4;
  block.convs = {conv(c.in, inner, c.kernels[0]), conv(inner, inner, c.kernels[1]), conv(inner, inner, c.kernels[2]),
                 conv(inner, c.out, c.kernels[3])};
  block.options = {.gain = 1.0 / 9, .compute_dtype = compute, .enlarges = c.enlarges};
  return block;
}

Tensor fused(const Block& block) { return resblock(block.x, block.id, block.convs, block.options); }

Tensor op_by_op(const Block& block) {
  const auto conv = [](const Tensor& x, const ConvWeights& weights) {
    const auto [w, b] = weights.to(x.scalar_type());
    return at::conv2d(x, w, b, 1, (w.size(2) - 1) / 2);
  };
  const int64_t size = block.x.size(2);
  const Tensor x = block.options.enlarges ? at::upsample_nearest2d(block.x, {2 * size, 2 * size}) : block.x;
  Tensor residual = x.to(block.options.compute_dtype);
  for (const auto& weights : block.convs) residual = conv(at::relu(residual), weights);
  return (block.id.w.defined() ? conv(x, block.id) : x) + residual * block.options.gain;
}

std::vector<Tensor> with_gradients(Block& block, const Tensor& out) {
  for (auto& leaf : block.leaves) leaf.mutable_grad() = Tensor();
  (out * random_tensor(99, out.sizes()).to(out.scalar_type())).sum().backward();
  std::vector<Tensor> results{out.detach()};
  for (const auto& leaf : block.leaves) results.push_back(leaf.grad());
  return results;
}

void expect_equal(const Case& c, at::ScalarType type, double tolerance) {
  Block block = make_block(c, type, type, type);
  const auto actual = with_gradients(block, fused(block));
  const auto expected = with_gradients(block, op_by_op(block));
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < actual.size(); ++i) {
    ASSERT_EQ(actual[i].defined(), expected[i].defined()) << c.name << " " << i;
    if (!actual[i].defined()) continue;
    EXPECT_TRUE(close_to(actual[i], expected[i], tolerance)) << c.name << " " << i;
  }
}

TEST(Resblock, ValuesAndGradientsAreThoseOfTheFormula) {
  for (const auto& c : kCases) {
    expect_equal(c, at::kDouble, 1e-12);
    expect_equal(c, at::kFloat, 1e-5);
  }
}

// |a - b| / |b| in the Euclidean norm: a flipped ReLU is one error among many.
double distance(const Tensor& actual, const Tensor& expected) {
  const Tensor b = expected.to(at::kDouble);
  return ((actual.to(at::kDouble) - b).norm() / b.norm()).item<double>();
}

struct Errors {
  double fused = 0, by_op = 0;  // summed over the result and all gradients
  double result = 0;            // of the fused result alone
};

// Of the block in bf16 with x in `x_type` against the formula in f64.
Errors errors_of(Case c, at::ScalarType x_type) {
  c.in *= 8;
  c.out *= 8;
  Block low = make_block(c, x_type, at::kFloat, at::kBFloat16);
  Block exact = make_block(c, at::kDouble, at::kDouble, at::kDouble);
  const auto fused_results = with_gradients(low, fused(low)), by_op = with_gradients(low, op_by_op(low));
  const auto expected = with_gradients(exact, op_by_op(exact));
  Errors errors{.result = distance(fused_results[0], expected[0])};
  for (size_t i = 0; i < fused_results.size(); ++i) {
    if (!fused_results[i].defined()) continue;
    EXPECT_EQ(fused_results[i].scalar_type(), i < 2 ? x_type : at::kFloat) << c.name << " " << i;
    errors.fused += distance(fused_results[i], expected[i]);
    errors.by_op += distance(by_op[i], expected[i]);
  }
  return errors;
}

TEST(Resblock, InBf16ItErrsNoMoreThanTheFormulaDoes) {
  double fused_error = 0, by_op_error = 0;
  for (const Case& c : kCases) {
    const Errors errors = errors_of(c, at::kBFloat16);
    EXPECT_LT(errors.result, 5e-3) << c.name;
    fused_error += errors.fused;
    by_op_error += errors.by_op;
  }
  EXPECT_LT(fused_error, 1.1 * by_op_error);
}

TEST(Resblock, AnF32StreamKeepsWhatBf16ConvolutionsAddToIt) {
  for (const Case& c : kCases) {
    // The branch's error is 2^-9, its share of the result 1/9.
    EXPECT_LT(errors_of(c, at::kFloat).result, 6e-4) << c.name;
  }
}

TEST(Resblock, DoesNotChangeItsInput) {
  for (const bool enlarges : {false, true}) {
    Case c = kCases[2];
    c.enlarges = enlarges;
    Block block = make_block(c, at::kFloat, at::kFloat, at::kFloat);
    const Tensor before = block.x.detach().clone();
    with_gradients(block, fused(block));
    EXPECT_TRUE(testing::bitwise_equal(block.x.detach(), before));
  }
}

TEST(Resblock, OnlyABlockThatBeginsWithOneByOneEnlarges) {
  Case c = kCases[0];
  c.enlarges = true;
  EXPECT_THROW(fused(make_block(c, at::kFloat, at::kFloat, at::kFloat)), c10::ValueError);
}

}  // namespace
}  // namespace dalle::layers

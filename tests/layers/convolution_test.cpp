// The resblock as one differentiable step, and kernel gradients as matrix products, against ATen op by op.
#include "dalle/layers/convolution.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

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
};

// Up to 1024 positions (2 x 9 x 9) and more (2 x 24 x 24): the two ways to a kernel's gradient.
constexpr Case kCases[] = {{"encoder, identity", 8, 8, 9, {3, 3, 3, 1}},
                           {"encoder, wider", 8, 16, 24, {3, 3, 3, 1}},
                           {"decoder, identity", 8, 8, 24, {1, 3, 3, 3}},
                           {"decoder, narrower", 16, 8, 9, {1, 3, 3, 3}},
                           {"input without gradient", 8, 8, 9, {3, 3, 3, 1}, false}};

struct Block {
  Tensor x;
  ConvWeights id;
  std::array<ConvWeights, 4> convs;
  std::vector<Tensor> leaves;
};

Block make_block(const Case& c, at::ScalarType type) {
  uint64_t seed = 1;
  Block block;
  const auto leaf = [&](at::IntArrayRef shape, double scale) {
    Tensor t = (random_tensor(seed++, shape) * scale).to(type);
    if (shape.size() == 4) t = t.contiguous(at::MemoryFormat::ChannelsLast);
    block.leaves.push_back(t.requires_grad_());
    return t;
  };
  const auto conv = [&](int64_t in, int64_t out, int64_t kernel) {
    return ConvWeights{leaf({out, in, kernel, kernel}, 1 / std::sqrt(static_cast<double>(in * kernel * kernel))),
                       leaf({out}, 0.1)};
  };
  block.x = leaf({2, c.in, c.size, c.size}, 1);
  if (!c.wants_x) block.x.requires_grad_(false);
  if (c.in != c.out) block.id = conv(c.in, c.out, 1);
  const int64_t inner = c.out / 4;
  block.convs = {conv(c.in, inner, c.kernels[0]), conv(inner, inner, c.kernels[1]), conv(inner, inner, c.kernels[2]),
                 conv(inner, c.out, c.kernels[3])};
  return block;
}

Tensor op_by_op(const Block& block, double gain) {
  const auto conv = [](const Tensor& x, const ConvWeights& weights) {
    return at::conv2d(x, weights.w, weights.b, 1, (weights.w.size(2) - 1) / 2);
  };
  Tensor residual = block.x;
  for (const auto& weights : block.convs) residual = conv(at::relu(residual), weights);
  return (block.id.w.defined() ? conv(block.x, block.id) : block.x) + residual * gain;
}

std::vector<Tensor> with_gradients(Block& block, const Tensor& out) {
  for (auto& leaf : block.leaves) leaf.mutable_grad() = Tensor();
  (out * random_tensor(99, out.sizes()).to(out.scalar_type())).sum().backward();
  std::vector<Tensor> results{out.detach()};
  for (const auto& leaf : block.leaves) results.push_back(leaf.grad());
  return results;
}

void expect_equal(const Case& c, at::ScalarType type, double tolerance) {
  Block block = make_block(c, type);
  const auto actual = with_gradients(block, resblock(block.x, block.id, block.convs, 1.0 / 9));
  const auto expected = with_gradients(block, op_by_op(block, 1.0 / 9));
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

TEST(Resblock, InBf16ItErrsNoMoreThanTheFormulaDoes) {
  double fused_error = 0, by_op_error = 0;
  for (Case c : kCases) {
    c.in *= 8;
    c.out *= 8;
    Block low = make_block(c, at::kBFloat16), exact = make_block(c, at::kDouble);
    for (size_t i = 0; i < low.leaves.size(); ++i) exact.leaves[i].detach().copy_(low.leaves[i].detach());
    const auto fused = with_gradients(low, resblock(low.x, low.id, low.convs, 1.0 / 9));
    const auto by_op = with_gradients(low, op_by_op(low, 1.0 / 9));
    const auto expected = with_gradients(exact, op_by_op(exact, 1.0 / 9));
    for (size_t i = 0; i < fused.size(); ++i) {
      if (!fused[i].defined()) continue;
      fused_error += distance(fused[i], expected[i]);
      by_op_error += distance(by_op[i], expected[i]);
    }
    EXPECT_LT(distance(fused[0], expected[0]), 5e-3) << c.name;
  }
  EXPECT_LT(fused_error, 1.2 * by_op_error);
}

TEST(Resblock, DoesNotChangeItsInput) {
  Block block = make_block(kCases[0], at::kFloat);
  const Tensor before = block.x.detach().clone();
  with_gradients(block, resblock(block.x, block.id, block.convs, 0.25));
  EXPECT_TRUE(testing::bitwise_equal(block.x.detach(), before));
}

TEST(Convolution, ReluIsPartOfIt) {
  for (const auto type : {at::kFloat, at::kDouble, at::kBFloat16}) {
    const Block block = make_block(kCases[1], type);
    const Tensor plain = convolve(block.x.detach(), {block.convs[0].w.detach(), block.convs[0].b.detach()});
    EXPECT_TRUE(close_to(convolve_relu(block.x.detach(), {block.convs[0].w.detach(), block.convs[0].b.detach()}),
                         at::relu(plain), 1e-6))
        << type;
  }
}

}  // namespace
}  // namespace dalle::layers

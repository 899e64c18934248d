// Convolutions with a fused ReLU and as matrix products, against ATen op by op.
#include "dalle/layers/convolution.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "support/random_tensor.h"
#include "support/tensor_matchers.h"

namespace dalle::layers {
namespace {

using testing::close_to;
using testing::random_tensor;

Tensor picture(uint64_t seed, at::IntArrayRef sizes, at::ScalarType type) {
  return random_tensor(seed, sizes).to(type).contiguous(at::MemoryFormat::ChannelsLast);
}

// Largest |a - b| relative to the largest |b|.
double error(const Tensor& actual, const Tensor& expected) {
  const Tensor b = expected.to(at::kDouble);
  return ((actual.to(at::kDouble) - b).abs().max() / b.abs().max()).item<double>();
}

TEST(Convolution, ReluIsPartOfIt) {
  for (const auto type : {at::kFloat, at::kDouble, at::kBFloat16}) {
    const Tensor x = picture(1, {2, 8, 9, 7}, type);
    const ConvWeights weights{picture(2, {12, 8, 3, 3}, type), random_tensor(3, {12}).to(type)};
    EXPECT_TRUE(close_to(convolve_relu(x, weights), at::relu(convolve(x, weights)), 1e-6)) << type;
  }
}

struct PointwiseCase {
  int64_t in, out, height, width;
};
// Sizes for the tiles (channels multiples of 32 and 16) and others.
constexpr PointwiseCase kPointwise[] = {{32, 48, 8, 8}, {64, 512, 4, 8}, {7, 5, 3, 3}, {33, 16, 2, 4}};

TEST(Convolution, PointwiseIsAOneByOneConvolution) {
  for (const auto& c : kPointwise) {
    for (const auto type : {at::kFloat, at::kDouble}) {
      const double tolerance = type == at::kFloat ? 1e-5 : 1e-12;
      std::vector<Tensor> results[2];
      for (const bool is_reference : {false, true}) {
        Tensor x = picture(1, {2, c.in, c.height, c.width}, type).requires_grad_();
        const ConvWeights weights{picture(2, {c.out, c.in, 1, 1}, type).requires_grad_(),
                                  random_tensor(3, {c.out}).to(type).requires_grad_()};
        const Tensor out = is_reference ? at::conv2d(x, weights.w, weights.b) : pointwise(x, weights, type);
        (out * random_tensor(4, out.sizes())).sum().backward();
        results[is_reference] = {out.detach(), x.grad(), weights.w.grad(), weights.b.grad()};
      }
      for (size_t i = 0; i < 4; ++i) EXPECT_TRUE(close_to(results[0][i], results[1][i], tolerance)) << i;
    }
  }
}

TEST(Convolution, PointwiseOfBf16MayEndInF32) {
  for (const auto& c : kPointwise) {
    Tensor x = picture(1, {2, c.in, c.height, c.width}, at::kBFloat16).requires_grad_();
    const ConvWeights weights{picture(2, {c.out, c.in, 1, 1}, at::kBFloat16).to(at::kFloat).requires_grad_(),
                              at::zeros({c.out}).requires_grad_()};
    const Tensor out = pointwise(x, weights, at::kFloat);
    ASSERT_EQ(out.scalar_type(), at::kFloat);
    const Tensor exact = at::conv2d(x.detach().to(at::kFloat), weights.w.detach(), weights.b.detach());
    const bool has_tiles = c.in % 32 == 0;
    EXPECT_LT(error(out.detach(), exact), has_tiles ? 1e-5 : 5e-3);
    const Tensor grad = random_tensor(4, out.sizes()).to(at::kBFloat16).to(at::kFloat);
    (out * grad).sum().backward();
    EXPECT_EQ(x.grad().scalar_type(), at::kBFloat16);
    EXPECT_EQ(weights.w.grad().scalar_type(), at::kFloat);
    const auto rows = [](const Tensor& t) { return t.detach().to(at::kFloat).permute({0, 2, 3, 1}).flatten(0, 2); };
    EXPECT_LT(error(rows(x.grad()), at::mm(rows(grad), weights.w.detach().flatten(1))), 5e-3);
    EXPECT_LT(error(weights.w.grad().flatten(1), at::mm(rows(grad).t(), rows(x))), 5e-3);
    EXPECT_LT(error(weights.b.grad(), rows(grad).sum(0)), 5e-3);
  }
}

TEST(Convolution, PointwiseF32IsAsGoodAsF32WithBf16Operands) {
  for (const auto& c : kPointwise) {
    const Tensor x = picture(1, {2, c.in, c.height, c.width}, at::kFloat);
    const ConvWeights weights{picture(2, {c.out, c.in, 1, 1}, at::kFloat), random_tensor(3, {c.out})};
    const Tensor exact = at::conv2d(x.to(at::kDouble), weights.w.to(at::kDouble), weights.b.to(at::kDouble));
    EXPECT_LT(error(pointwise_f32(x, weights), exact), 2e-5) << c.in;
  }
}

}  // namespace
}  // namespace dalle::layers

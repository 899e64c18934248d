// Winograd's 3x3 convolutions against ATen's in f64: exactly where nothing rounds, and to the size of bf16's rounding.
#include "dalle/layers/winograd.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "dalle/layers/tile_product.h"
#include "support/random_tensor.h"
#include "support/tensor_matchers.h"

namespace dalle::layers {
namespace {

using testing::bitwise_equal;
using testing::random_tensor;

struct Case {
  const char* name;
  int64_t batch, in, out, height, width;
};
// Numbers of tiles below, at and above the blocks', and such that a kernel's gradient takes one stretch or several.
constexpr Case kCases[] = {{"one tile", 1, 64, 64, 2, 2},
                           {"wide", 2, 96, 160, 6, 10},
                           {"uneven blocks", 3, 224, 32, 10, 14},
                           {"several stretches", 2, 32, 288, 64, 96}};

// With both kinds of tiles.
class Winograd : public ::testing::TestWithParam<detail::Tiles> {
 protected:
  void SetUp() override {
    if (!has_bf16_products()) GTEST_SKIP() << "no AVX-512 bf16 here";
  }
  void TearDown() override { at::set_num_threads(1); }

 private:
  detail::OtherTiles tiles_{GetParam()};
};
INSTANTIATE_TEST_SUITE_P(Tiles, Winograd, ::testing::Values(detail::Tiles::kOneDnn, detail::Tiles::kOwn),
                         [](const auto& kind) { return kind.param == detail::Tiles::kOwn ? "Own" : "OneDnn"; });

struct Problem {
  Tensor x, w, b, grad;
};

Problem make_problem(const Case& c) {
  const auto last = at::MemoryFormat::ChannelsLast;
  return {random_tensor(1, {c.batch, c.in, c.height, c.width}).to(at::kBFloat16).contiguous(last),
          (random_tensor(2, {c.out, c.in, 3, 3}) / std::sqrt(9.0 * static_cast<double>(c.in))).contiguous(last),
          random_tensor(3, {c.out}),
          random_tensor(4, {c.batch, c.out, c.height, c.width}).to(at::kBFloat16).contiguous(last)};
}

// Small whole numbers, kernels in fours: no transform, product or sum of them rounds, in bf16 or f32.
Problem make_whole(const Case& c) {
  Problem problem = make_problem(c);
  const auto whole = [](const Tensor& t, double scale) { return (t.to(at::kFloat) * scale).round(); };
  problem.x = whole(problem.x, 1).clamp_(-3, 3).to(at::kBFloat16);
  problem.grad = whole(problem.grad, 1).clamp_(-3, 3).to(at::kBFloat16);
  problem.w = 4 * whole(problem.w, std::sqrt(9.0 * static_cast<double>(c.in))).clamp_(-2, 2);
  problem.b = whole(problem.b, 8);
  return problem;
}

struct Results {
  Tensor y, x, w, b;
};

Results exact(const Problem& problem) {
  const Tensor x = problem.x.to(at::kDouble), w = problem.w.to(at::kDouble), grad = problem.grad.to(at::kDouble);
  auto [grad_x, grad_w, grad_b] = at::convolution_backward(grad, x, w, at::IntArrayRef{w.size(0)}, {1, 1}, {1, 1},
                                                           {1, 1}, false, {0, 0}, 1, {true, true, true});
  return {at::conv2d(x, w, problem.b.to(at::kDouble), 1, 1), grad_x, grad_w, grad_b};
}

Results by_winograd(const Problem& problem) {
  const auto weights = winograd_kernel_gradients(problem.grad, problem.x);
  return {winograd_convolve(problem.x, problem.w, problem.b, /*relu=*/false),
          winograd_input_gradient(problem.grad, problem.w, 1), weights.w, weights.b};
}

// Root of the mean square of the error, relative to that of the values.
double error(const Tensor& actual, const Tensor& expected) {
  return ((actual.to(at::kDouble) - expected).norm() / expected.norm()).item<double>();
}

bool equals_rounded(const Tensor& actual, const Tensor& expected) {
  return at::equal(actual, expected.to(actual.scalar_type()));
}

TEST_P(Winograd, IsExactWhereNothingRounds) {
  for (const auto& c : kCases) {
    const Problem problem = make_whole(c);
    const Results expected = exact(problem), actual = by_winograd(problem);
    EXPECT_TRUE(equals_rounded(actual.y, expected.y)) << c.name;
    EXPECT_TRUE(equals_rounded(actual.x, expected.x)) << c.name;
    EXPECT_TRUE(equals_rounded(actual.w, expected.w)) << c.name;
    EXPECT_TRUE(equals_rounded(actual.b, expected.b)) << c.name;
  }
}

// What rounding the operands of ATen's convolutions to bf16 does, with f32 sums.
Results of_rounded_operands(const Problem& problem) {
  Problem rounded = problem;
  rounded.w = problem.w.to(at::kBFloat16).to(at::kFloat);
  const Results results = exact(rounded);
  return {results.y.to(at::kBFloat16), results.x.to(at::kBFloat16), results.w, results.b};
}

TEST_P(Winograd, RoundsLittleMoreThanBf16OperandsDo) {
  for (const auto& c : kCases) {
    const Problem problem = make_problem(c);
    const Results expected = exact(problem), direct = of_rounded_operands(problem), actual = by_winograd(problem);
    EXPECT_LT(error(actual.y, expected.y), 3 * error(direct.y, expected.y)) << c.name;
    EXPECT_LT(error(actual.x, expected.x), 3 * error(direct.x, expected.x)) << c.name;
    // A kernel's gradient has operands that bf16 holds as they are, so that only Winograd's points are rounded.
    EXPECT_LT(error(actual.w, expected.w), 5e-3) << c.name;
    EXPECT_LT(error(actual.b, expected.b), 1e-6) << c.name;
  }
}

TEST_P(Winograd, ReluScaleAndMaskArePartOfIt) {
  const Problem problem = make_whole(kCases[2]);
  const Tensor y = winograd_convolve(problem.x, problem.w, problem.b, /*relu=*/false);
  EXPECT_TRUE(bitwise_equal(winograd_convolve(problem.x, problem.w, problem.b, /*relu=*/true), at::relu(y)));
  const Tensor mask = at::relu(problem.x), plain = winograd_input_gradient(problem.grad, problem.w, 0.25);
  EXPECT_TRUE(equals_rounded(plain, exact(problem).x * 0.25));
  const Tensor masked = winograd_input_gradient(problem.grad, problem.w, 0.25, mask);
  EXPECT_TRUE(bitwise_equal(masked, at::where(mask == 0, at::zeros_like(plain), plain)));
}

TEST_P(Winograd, NotANumberIsNotLost) {
  Problem problem = make_problem(kCases[1]);
  problem.x[0][5][2][3] = std::numeric_limits<float>::quiet_NaN();
  const Tensor y = winograd_convolve(problem.x, problem.w, problem.b, /*relu=*/true);
  EXPECT_TRUE(at::isnan(y[0].select(1, 2).select(1, 3)).all().item<bool>());
  EXPECT_FALSE(at::isnan(y[1]).any().item<bool>());
}

TEST_P(Winograd, ThreadsDoNotMatter) {
  for (const auto& c : kCases) {
    const Problem problem = make_problem(c);
    at::set_num_threads(1);
    const Results one = by_winograd(problem);
    at::set_num_threads(3);
    const Results three = by_winograd(problem);
    EXPECT_TRUE(bitwise_equal(one.y, three.y)) << c.name;
    EXPECT_TRUE(bitwise_equal(one.x, three.x)) << c.name;
    EXPECT_TRUE(bitwise_equal(one.w, three.w)) << c.name;
    EXPECT_TRUE(bitwise_equal(one.b, three.b)) << c.name;
  }
}

TEST_P(Winograd, TakesOtherMemoryLayouts) {
  const Problem problem = make_problem(kCases[1]);
  const Problem other{problem.x.contiguous(), problem.w.contiguous(), problem.b, problem.grad.contiguous()};
  const Results a = by_winograd(problem), b = by_winograd(other);
  EXPECT_TRUE(bitwise_equal(a.y, b.y) && bitwise_equal(a.x, b.x) && bitwise_equal(a.w, b.w));
}

TEST_P(Winograd, TakesWhatFitsAndRefusesTheRest) {
  const Problem problem = make_problem(kCases[1]);
  EXPECT_TRUE(fits_winograd(problem.x, problem.w));
  EXPECT_FALSE(fits_winograd(problem.x.to(at::kFloat), problem.w));
  EXPECT_FALSE(fits_winograd(problem.x.narrow(2, 0, 5), problem.w)) << "an odd height";
  EXPECT_FALSE(fits_winograd(problem.x, problem.w.narrow(0, 0, 48))) << "channels that are no multiple of 32";
  EXPECT_TRUE(fits_winograd_kernel_gradients(problem.grad, problem.x, 3));
  EXPECT_FALSE(fits_winograd_kernel_gradients(problem.grad, problem.x, 1));
  EXPECT_FALSE(fits_winograd_kernel_gradients(problem.grad.narrow(1, 0, 32), problem.x, 3)) << "few channels";
  EXPECT_FALSE(fits_winograd(problem.x, problem.w.narrow(3, 0, 1)));
  EXPECT_THROW(winograd_convolve(problem.x.narrow(1, 0, 64), problem.w, problem.b, false), c10::ValueError);
  EXPECT_THROW(winograd_input_gradient(problem.x, problem.w, 1), c10::ValueError);
  EXPECT_THROW(winograd_input_gradient(problem.grad, problem.w, 1, problem.x.narrow(2, 0, 2)), c10::ValueError);
  EXPECT_THROW(winograd_kernel_gradients(problem.grad.narrow(3, 0, 4), problem.x), c10::ValueError);
}

}  // namespace
}  // namespace dalle::layers

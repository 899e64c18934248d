// Products of bf16 matrices against the same products in f64: f32 accumulation is to be seen in the error.
#include "dalle/layers/bf16_product.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <utility>

#include "dalle/layers/tile_product.h"
#include "support/random_tensor.h"
#include "support/tensor_matchers.h"

namespace dalle::layers {
namespace {

using testing::bitwise_equal;
using testing::random_tensor;

Tensor bf16_tensor(uint64_t seed, at::IntArrayRef sizes) { return random_tensor(seed, sizes).to(at::kBFloat16); }

double error(const Tensor& actual, const Tensor& expected) {
  return ((actual.to(at::kDouble) - expected).abs().max() / expected.abs().max()).item<double>();
}

// With both kinds of tiles.
class Bf16Product : public ::testing::TestWithParam<detail::Tiles> {
 protected:
  void SetUp() override {
    if (!has_bf16_products()) GTEST_SKIP() << "no AVX-512 bf16 here";
  }
  void TearDown() override { at::set_num_threads(1); }

 private:
  detail::OtherTiles tiles_{GetParam()};
};

INSTANTIATE_TEST_SUITE_P(Tiles, Bf16Product, ::testing::Values(detail::Tiles::kOneDnn, detail::Tiles::kOwn),
                         [](const auto& kind) { return kind.param == detail::Tiles::kOwn ? "Own" : "OneDnn"; });

struct Size {
  int64_t rows, columns, depth;
};
// Whole tiles, remainders of every dimension, several panels, several depths.
constexpr Size kSizes[] = {{64, 64, 512}, {1, 16, 32}, {100, 48, 96}, {65, 272, 544}, {130, 336, 1056}, {70, 64, 2080}};

TEST_P(Bf16Product, IsTheMatrixProduct) {
  for (const auto& s : kSizes) {
    const Tensor a = bf16_tensor(1, {s.rows, s.depth}), b = bf16_tensor(2, {s.columns, s.depth});
    const Tensor bias = random_tensor(3, {s.columns});
    const Tensor exact = at::mm(a.to(at::kDouble), b.to(at::kDouble).t());
    const auto name = [&] { return std::to_string(s.rows) + "x" + std::to_string(s.columns); };
    EXPECT_LT(error(product_nt(a, b, at::kFloat), exact), 2e-6) << name();
    EXPECT_LT(error(product_nt(a, b, at::kFloat, bias), exact + bias), 2e-6) << name();
    EXPECT_LT(error(product_nt(a, b, at::kBFloat16, bias), exact + bias), 4e-3) << name();
    EXPECT_LT(error(product_nn(a, b.t().contiguous(), at::kFloat), exact), 2e-6) << name();
    EXPECT_LT(error(product_nn(a, b.t().contiguous(), at::kBFloat16), exact), 4e-3) << name();
    EXPECT_LT(error(product_nn(a, b.t().contiguous(), at::kFloat, bias), exact + bias), 2e-6) << name();
  }
}

TEST_P(Bf16Product, F32MatricesAsSumsOfTwo) {
  for (const auto& s : kSizes) {
    const Tensor a = random_tensor(1, {s.rows, s.depth}), b = random_tensor(2, {s.columns, s.depth});
    const Tensor bias = random_tensor(3, {s.columns});
    const Tensor exact = at::mm(a.to(at::kDouble), b.to(at::kDouble).t());
    EXPECT_LT(error(product_nt_f32(a, b), exact), 2e-5) << s.rows;
    EXPECT_LT(error(product_nt_f32(a, b, bias), exact + bias), 2e-5) << s.rows;
  }
  EXPECT_THROW(product_nt_f32(random_tensor(1, {4, 33}), random_tensor(2, {16, 33})), c10::ValueError);
}

TEST_P(Bf16Product, PackedOnceOrEachTimeIsTheSame) {
  for (const auto& s : kSizes) {
    const Tensor a = bf16_tensor(1, {s.rows, s.depth}), b = bf16_tensor(2, {s.columns, s.depth});
    const Tensor bias = random_tensor(3, {s.columns}), transposed = b.t().contiguous();
    const PackedMatrix nt = pack_nt(b), nn = pack_nn(transposed);
    EXPECT_TRUE(bitwise_equal(product(a, nt, at::kFloat, bias), product_nt(a, b, at::kFloat, bias)));
    EXPECT_TRUE(bitwise_equal(product(a, nn, at::kBFloat16), product_nn(a, transposed, at::kBFloat16)));
  }
  EXPECT_THROW(product(bf16_tensor(1, {4, 64}), pack_nt(bf16_tensor(2, {16, 32})), at::kFloat), c10::ValueError);
  EXPECT_THROW(product(bf16_tensor(1, {0, 32}), pack_nt(bf16_tensor(2, {16, 32})), at::kFloat), c10::ValueError);
}

TEST_P(Bf16Product, AWideRightHandSideIsRoundedFirst) {
  for (const auto& s : kSizes) {
    const Tensor a = bf16_tensor(1, {s.rows, s.depth}), b = random_tensor(2, {s.columns, s.depth});
    const Tensor turned = b.t().contiguous(), b_16 = b.to(at::kBFloat16), turned_16 = turned.to(at::kBFloat16);
    ASSERT_TRUE(fits_bf16_product(a, b, s.depth, s.columns));
    EXPECT_TRUE(bitwise_equal(product_nt(a, b, at::kFloat), product_nt(a, b_16, at::kFloat))) << s.rows;
    EXPECT_TRUE(bitwise_equal(product_nn(a, turned, at::kFloat), product_nn(a, turned_16, at::kFloat))) << s.rows;
    EXPECT_TRUE(bitwise_equal(pack_nt(b).data, pack_nt(b_16).data)) << s.rows;
    EXPECT_TRUE(bitwise_equal(pack_nn(turned).data, pack_nn(turned_16).data)) << s.rows;
  }
}

TEST_P(Bf16Product, LinearGradients) {
  for (const auto& [rows, out, in] : {std::array<int64_t, 3>{32, 16, 16},
                                      {96, 80, 48},
                                      {1312, 64, 128},
                                      {64, 208, 144},
                                      {64, 144, 208},
                                      {4160, 80, 32},
                                      {4160, 32, 80}}) {
    const Tensor grad = bf16_tensor(1, {rows, out}), x = bf16_tensor(2, {rows, in});
    const Tensor exact = at::mm(grad.to(at::kDouble).t(), x.to(at::kDouble));
    const auto [w, b] = linear_gradients(grad, x);
    EXPECT_LT(error(w, exact), 5e-6);
    EXPECT_LT(error(b, grad.to(at::kDouble).sum(0)), 5e-6);
    Tensor sum = random_tensor(3, {out, in});
    const Tensor expected = sum.to(at::kDouble) + exact;
    EXPECT_TRUE(linear_gradients(grad, x, sum).w.is_alias_of(sum));
    EXPECT_LT(error(sum, expected), 5e-6);
  }
  EXPECT_FALSE(fits_linear_gradients(bf16_tensor(1, {33, 16}), bf16_tensor(2, {33, 16})));
  EXPECT_THROW(linear_gradients(bf16_tensor(1, {32, 16}), bf16_tensor(2, {64, 16})), c10::ValueError);
}

TEST_P(Bf16Product, AnAddendIsPartOfTheSum) {
  for (const auto& s : kSizes) {
    const Tensor a = bf16_tensor(1, {s.rows, s.depth}), b = bf16_tensor(2, {s.columns, s.depth});
    const Tensor bias = random_tensor(3, {s.columns}), addend = random_tensor(4, {s.rows, s.columns}) * 10;
    const Tensor exact = at::mm(a.to(at::kDouble), b.to(at::kDouble).t()) + addend, before = addend.clone();
    EXPECT_LT(error(product_nt(a, b, at::kFloat, {}, addend), exact), 2e-6) << s.rows;
    EXPECT_LT(error(product_nt(a, b, at::kFloat, bias, addend), exact + bias), 2e-6) << s.rows;
    EXPECT_LT(error(product_nn(a, b.t().contiguous(), at::kFloat, bias, addend), exact + bias), 2e-6) << s.rows;
    EXPECT_TRUE(bitwise_equal(addend, before));
    Tensor sum = addend.clone();
    add_product(sum, a, pack_nt(b), bias);
    EXPECT_LT(error(sum, exact + bias), 2e-6) << s.rows;
  }
  // Each of the 2,048 steps is less than half of what the addend can show; their sum is 0.125.
  const Tensor small = at::full({64, 2048}, std::ldexp(1.0, -7), at::kBFloat16), large = at::full({64, 64}, 4096.0F);
  EXPECT_TRUE(bitwise_equal(product_nt(small, small, at::kFloat, {}, large), large + 0.125));
  const Tensor a = bf16_tensor(1, {4, 32}), b = bf16_tensor(2, {16, 32}), addend = random_tensor(4, {4, 16});
  EXPECT_THROW(product_nt(a, b, at::kBFloat16, {}, addend), c10::ValueError);
  EXPECT_THROW(product_nt(a, b, at::kFloat, {}, addend.to(at::kBFloat16)), c10::ValueError);
  EXPECT_THROW(product_nt(a, b, at::kFloat, {}, addend.slice(0, 0, 2)), c10::ValueError);
}

TEST_P(Bf16Product, TakesSlicesOfLargerMatrices) {
  const Tensor a = bf16_tensor(1, {40, 128}).slice(1, 32, 96), b = bf16_tensor(2, {64, 80}).slice(1, 16, 64);
  EXPECT_LT(error(product_nn(a, b, at::kFloat), at::mm(a.to(at::kDouble), b.to(at::kDouble))), 2e-6);
  const Tensor wide = random_tensor(3, {64, 80}).slice(1, 16, 64), wide_16 = wide.to(at::kBFloat16);
  EXPECT_TRUE(bitwise_equal(product_nn(a, wide, at::kFloat), product_nn(a, wide_16, at::kFloat)));
  const Tensor turned = random_tensor(4, {48, 100}).slice(1, 16, 80), turned_16 = turned.to(at::kBFloat16);
  EXPECT_TRUE(bitwise_equal(product_nt(a, turned, at::kFloat), product_nt(a, turned_16, at::kFloat)));
}

TEST_P(Bf16Product, ThreadsChangeNoBit) {
  const Tensor a = bf16_tensor(1, {1000, 160}), b = bf16_tensor(2, {80, 160});
  const Tensor grad = bf16_tensor(3, {3, 48, 16, 16}), x = bf16_tensor(4, {3, 32, 16, 16});
  at::set_num_threads(1);
  const Tensor wide_grad = bf16_tensor(7, {3, 160, 16, 16});  // more channels than the kernel has columns
  const Tensor tall = bf16_tensor(5, {96, 208}), low = bf16_tensor(6, {96, 144});
  const Tensor product = product_nt(a, b, at::kFloat), gradient = conv_kernel_gradients(grad, x, 3).w;
  const auto of_wide = conv_kernel_gradients(wide_grad, x, 3);
  const auto of_tall = linear_gradients(tall, low), of_low = linear_gradients(low, tall);
  for (const int threads : {2, 3, 8}) {
    at::set_num_threads(threads);
    EXPECT_TRUE(bitwise_equal(product_nt(a, b, at::kFloat), product)) << threads;
    EXPECT_TRUE(bitwise_equal(conv_kernel_gradients(grad, x, 3).w, gradient)) << threads;
    for (const auto& [again, once] :
         {std::pair(linear_gradients(tall, low), of_tall), std::pair(linear_gradients(low, tall), of_low),
          std::pair(conv_kernel_gradients(wide_grad, x, 3), of_wide)}) {
      EXPECT_TRUE(bitwise_equal(again.w, once.w)) << threads;
      EXPECT_TRUE(bitwise_equal(again.b, once.b)) << threads;
    }
  }
}

TEST_P(Bf16Product, RefusesWhatDoesNotFit) {
  const Tensor a = bf16_tensor(1, {8, 64});
  EXPECT_THROW(product_nt(a, bf16_tensor(2, {16, 32}), at::kFloat), c10::ValueError);
  EXPECT_THROW(product_nt(a, bf16_tensor(2, {17, 64}), at::kFloat), c10::ValueError);
  EXPECT_THROW(product_nt(a.to(at::kFloat), bf16_tensor(2, {16, 64}), at::kFloat), c10::ValueError);
  EXPECT_FALSE(fits_conv_kernel_gradients(bf16_tensor(1, {1, 16, 8, 7}), bf16_tensor(2, {1, 16, 8, 7})));
  EXPECT_THROW(conv_kernel_gradients(bf16_tensor(1, {1, 16, 8, 8}), bf16_tensor(2, {2, 16, 8, 8}), 3), c10::ValueError);
}

struct Convolution {
  int64_t pictures, in, out, height, width, kernel;
};
// Every width of tile (48, 96, 64, 16 columns), one stretch and several, both roles, kernels from 1 to 7, rectangles.
constexpr Convolution kConvolutions[] = {{3, 32, 160, 16, 16, 3}, {1, 16, 16, 8, 8, 3},   {2, 32, 16, 16, 8, 3},
                                         {3, 64, 80, 16, 32, 3},  {5, 16, 48, 4, 8, 1},   {2, 48, 64, 64, 64, 1},
                                         {2, 128, 16, 64, 32, 3}, {2, 16, 32, 16, 16, 5}, {1, 32, 16, 16, 2, 7},
                                         {9, 80, 64, 8, 8, 3}};

TEST_P(Bf16Product, KernelGradientIsTheConvolutions) {
  for (const auto& c : kConvolutions) {
    const Tensor grad = bf16_tensor(1, {c.pictures, c.out, c.height, c.width});
    const Tensor x = bf16_tensor(2, {c.pictures, c.in, c.height, c.width}).contiguous(at::MemoryFormat::ChannelsLast);
    ASSERT_TRUE(fits_conv_kernel_gradients(grad, x));
    const auto [actual, bias] = conv_kernel_gradients(grad, x, c.kernel);
    Tensor w = at::zeros({c.out, c.in, c.kernel, c.kernel}, at::kDouble).requires_grad_();
    const Tensor out = at::conv2d(x.to(at::kDouble), w, {}, 1, c.kernel / 2);
    (out * grad.to(at::kDouble)).sum().backward();
    EXPECT_TRUE(actual.is_contiguous(at::MemoryFormat::ChannelsLast));
    EXPECT_LT(error(bias, grad.to(at::kDouble).sum({0, 2, 3})), 5e-6) << c.in << " to " << c.out;
    EXPECT_LT(error(actual, w.grad()), 5e-6) << c.in << " to " << c.out << ", kernel " << c.kernel;
  }
}

}  // namespace
}  // namespace dalle::layers

// The linear layer as one step against ATen's.
#include "dalle/layers/linear_function.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "dalle/core/tensor_memory.h"
#include "dalle/layers/bf16_product.h"
#include "support/random_tensor.h"
#include "support/tensor_matchers.h"

namespace dalle::layers {
namespace {

using testing::close_to;
using testing::random_tensor;

struct Results {
  Tensor out, x, w, b;
};

double error(const Tensor& actual, const Tensor& expected) {
  return ((actual.to(at::kDouble) - expected).abs().max() / expected.abs().max()).item<double>();
}

// x [2, rows, in] and a gradient that fit bf16.
Results run(int64_t rows, int64_t in, int64_t out_size, at::ScalarType x_type, at::ScalarType out_type, bool by_aten,
            bool has_bias = true, std::optional<Activation> of_input = {}, bool is_transposed = false) {
  const auto master = x_type == at::kDouble ? at::kDouble : at::kFloat;
  const auto rounded = [](const Tensor& t) { return t.to(at::kBFloat16); };
  const Tensor x = rounded(random_tensor(1, {2, rows, in})).to(x_type).requires_grad_();
  Tensor w = rounded(random_tensor(2, {out_size, in})).to(master);
  if (is_transposed) w = w.t().contiguous().t();
  w.requires_grad_();
  const Tensor b = has_bias ? random_tensor(3, {out_size}).to(master).requires_grad_() : Tensor();
  const Tensor activated = of_input == Activation::kGelu ? at::gelu(x) : of_input ? x * at::sigmoid(1.702 * x) : x;
  const Tensor out = by_aten ? at::linear(activated, w, has_bias ? std::optional<Tensor>(b) : std::nullopt)
                             : linear(x, w, b, out_type, of_input);
  (out * rounded(random_tensor(4, out.sizes())).to(out.scalar_type())).sum().backward();
  return {out.detach(), x.grad(), w.grad(), has_bias ? b.grad() : Tensor()};
}

// Sizes for the tiles and others.
constexpr int64_t kSizes[][3] = {{32, 64, 96}, {16, 32, 32}, {5, 64, 96}, {16, 33, 48}, {7, 5, 3}};

TEST(LinearFunction, IsTheLinearLayer) {
  for (const auto& [rows, in, out] : kSizes) {
    const Results exact = run(rows, in, out, at::kDouble, at::kDouble, /*by_aten=*/true);
    for (const auto& [type, bound] : {std::pair{at::kDouble, 1e-14}, {at::kFloat, 1e-6}}) {
      const Results actual = run(rows, in, out, type, type, /*by_aten=*/false);
      EXPECT_LT(error(actual.out, exact.out), bound);
      EXPECT_LT(error(actual.x, exact.x), bound);
      EXPECT_LT(error(actual.w, exact.w), bound);
      EXPECT_LT(error(actual.b, exact.b), bound);
    }
  }
}

TEST(LinearFunction, Bf16OperandsAreSummedInF32) {
  for (const auto& [rows, in, out] : kSizes) {
    const Results exact = run(rows, in, out, at::kDouble, at::kDouble, /*by_aten=*/true);
    const Results actual = run(rows, in, out, at::kBFloat16, at::kFloat, /*by_aten=*/false);
    EXPECT_EQ(actual.out.scalar_type(), at::kFloat);
    EXPECT_EQ(actual.x.scalar_type(), at::kBFloat16);
    EXPECT_EQ(actual.w.scalar_type(), at::kFloat);
    EXPECT_EQ(actual.b.scalar_type(), at::kFloat);
    const bool has_tiles = in % 32 == 0, has_gradient_tiles = has_tiles && 2 * rows % 32 == 0;
    EXPECT_LT(error(actual.out, exact.out), has_tiles ? 1e-5 : 1e-2) << rows << " " << in;
    EXPECT_LT(error(actual.x, exact.x), 1e-2) << rows << " " << in;
    EXPECT_LT(error(actual.w, exact.w), has_gradient_tiles ? 1e-5 : 1e-2) << rows << " " << in;
    EXPECT_LT(error(actual.b, exact.b), has_gradient_tiles ? 1e-5 : 1e-2) << rows << " " << in;
  }
}

TEST(LinearFunction, TakesAWeightThatLiesTransposed) {
  for (const auto& [rows, in, out] : kSizes) {
    for (const auto& [type, bound] : {std::pair{at::kDouble, 1e-14}, {at::kFloat, 1e-6}, {at::kBFloat16, 1e-2}}) {
      const auto of = [&, type = type, rows = rows, in = in, out = out](bool is_transposed) {
        return run(rows, in, out, type, type, /*by_aten=*/false, true, {}, is_transposed);
      };
      const Results actual = of(true), expected = of(false);
      EXPECT_LT(error(actual.out, expected.out), bound);
      EXPECT_LT(error(actual.x, expected.x), bound);
      EXPECT_LT(error(actual.w, expected.w), bound);
      EXPECT_LT(error(actual.b, expected.b), bound);
      const bool has_tiles = type == at::kBFloat16 && in % 32 == 0 && out % 32 == 0;
      if (!has_tiles || !has_bf16_products()) continue;
      EXPECT_TRUE(testing::bitwise_equal(actual.out, expected.out)) << "the same kernel with the same packed matrix";
      EXPECT_TRUE(testing::bitwise_equal(actual.x, expected.x));
    }
  }
}

TEST(LinearFunction, ActivatesItsInput) {
  for (const auto& [rows, in, out] : kSizes) {
    for (const Activation activation : {Activation::kGelu, Activation::kQuickGelu}) {
      const Results exact = run(rows, in, out, at::kDouble, at::kDouble, /*by_aten=*/true, true, activation);
      for (const auto& [type, bound] : {std::pair{at::kDouble, 1e-14}, {at::kFloat, 1e-6}, {at::kBFloat16, 1e-2}}) {
        const Results actual = run(rows, in, out, type, type, /*by_aten=*/false, true, activation);
        EXPECT_LT(error(actual.out, exact.out), bound);
        EXPECT_LT(error(actual.x, exact.x), bound);
        EXPECT_LT(error(actual.w, exact.w), bound);
        EXPECT_LT(error(actual.b, exact.b), bound);
      }
    }
  }
}

TEST(LinearFunction, AddsTheOtherPathOfAResidualBlock) {
  for (const auto& [rows, in, out_size] : kSizes) {
    for (const auto& [type, out_type] :
         {std::pair{at::kDouble, at::kDouble}, {at::kFloat, at::kFloat}, {at::kBFloat16, at::kFloat}}) {
      const auto master = type == at::kDouble ? at::kDouble : at::kFloat;
      const Tensor x = random_tensor(1, {2, rows, in}).to(type), w = random_tensor(2, {out_size, in}).to(master);
      const Tensor b = random_tensor(3, {out_size}).to(master), weighting = random_tensor(5, {2, rows, out_size});
      const auto results = [&, out_type = out_type](bool at_once) {
        const Tensor addend = random_tensor(4, {2, rows, out_size}).to(out_type).requires_grad_();
        const Tensor leaf = x.detach().requires_grad_(),
                     sum = at_once ? linear(leaf, w, b, out_type, {}, addend) : addend + linear(leaf, w, b, out_type);
        (sum * weighting).sum().backward();
        return Results{sum.detach(), leaf.grad(), addend.grad(), {}};
      };
      const Results expected = results(false), actual = results(true);
      EXPECT_EQ(actual.out.scalar_type(), out_type);
      EXPECT_TRUE(testing::bitwise_equal(actual.out, expected.out)) << rows << " " << in;
      EXPECT_TRUE(testing::bitwise_equal(actual.x, expected.x));
      EXPECT_TRUE(testing::bitwise_equal(actual.w, expected.w)) << "the addend's gradient";
    }
  }
  const Tensor x = random_tensor(1, {4, 32}), w = random_tensor(2, {16, 32});
  EXPECT_THROW(linear(x, w, {}, at::kFloat, {}, at::zeros({4, 8})), c10::ValueError);
  EXPECT_THROW(linear(x, w, {}, at::kFloat, {}, at::zeros({4, 16}, at::kDouble)), c10::ValueError);
  const Tensor narrow = at::zeros({4, 16}, at::kBFloat16);
  EXPECT_THROW(linear(x.to(at::kBFloat16), w, {}, at::kBFloat16, {}, narrow), c10::ValueError);
}

// A layer keeps what comes in, which is what the one before gave: one tensor for each, and for a moment the activated one.
TEST(LinearFunction, AnActivatedInputIsNotKept) {
  constexpr int64_t kRows = 8192, kDim = 256, kLayers = 4, kBytes = kRows * kDim * 2;
  const Tensor first = random_tensor(1, {kRows, kDim}).to(at::kBFloat16).requires_grad_();
  const Tensor weight = (random_tensor(2, {kDim, kDim}) * 0.1).requires_grad_();
  const int64_t peak = peak_tensor_bytes([&] {
    Tensor x = first;
    for (int64_t i = 0; i < kLayers; ++i) x = linear(x, weight, {}, at::kBFloat16, Activation::kGelu);
  });
  EXPECT_LT(peak, (kLayers + 1) * kBytes + kBytes / 2);
}

TEST(LinearFunction, AWeightCastAgainGivesTheSameBits) {
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    for (const auto& [rows, in, out] : kSizes) {  // that of bf16 is cast in some alone
      const Results kept = run(rows, in, out, type, type, /*by_aten=*/false);
      const RemadeCasts remade;
      const Results again = run(rows, in, out, type, type, /*by_aten=*/false);
      EXPECT_TRUE(testing::bitwise_equal(again.x, kept.x)) << in;
      EXPECT_TRUE(testing::bitwise_equal(again.w, kept.w)) << in;
      EXPECT_TRUE(testing::bitwise_equal(again.out, kept.out)) << in;
    }
  }
}

TEST(LinearFunction, ACastThatIsMadeAgainIsNotKept) {
  constexpr int64_t kLayers = 4;
  const auto peak = [](int64_t dim, bool remade) {
    const Tensor first = random_tensor(1, {4, dim}).to(at::kBFloat16).requires_grad_();
    const Tensor weight = random_tensor(2, {dim, dim}).requires_grad_();
    return peak_tensor_bytes([&] {
      const RemadeCasts casts(remade);
      Tensor x = first;
      for (int64_t i = 0; i < kLayers; ++i) x = linear(x, weight, {}, at::kBFloat16);
    });
  };
  constexpr int64_t kOdd = 500, kWhole = 512;  // the second fits the products that read f32 weights
  EXPECT_GE(peak(kOdd, false) - peak(kOdd, true), (kLayers - 1) * kOdd * kOdd * 2);
  if (!has_bf16_products()) return;
  EXPECT_LT(peak(kWhole, false), kWhole * kWhole * 2) << "no weight is cast";
}

TEST(LinearFunction, ABiasIsNotNeeded) {
  const Results exact = run(32, 64, 96, at::kDouble, at::kDouble, /*by_aten=*/true, /*has_bias=*/false);
  const Results actual = run(32, 64, 96, at::kBFloat16, at::kBFloat16, /*by_aten=*/false, /*has_bias=*/false);
  EXPECT_LT(error(actual.out, exact.out), 1e-2);
  EXPECT_LT(error(actual.w, exact.w), 1e-5);
}

}  // namespace
}  // namespace dalle::layers

// Layer norm in one pass against ATen's in f64.
#include "dalle/layers/layer_norm_function.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <array>

#include "support/random_tensor.h"
#include "support/tensor_matchers.h"

namespace dalle::layers {
namespace {

using testing::bitwise_equal;
using testing::close_to;
using testing::random_tensor;

struct Results {
  Tensor out, x, weight, bias;
};

// The mean is far from 0, where a variance as a difference of squares would lose its digits; the gradient fits bf16.
Results run(int64_t rows, int64_t dim, at::ScalarType type, at::ScalarType out_type, bool by_aten = false) {
  const auto leaf = [&](uint64_t seed, at::IntArrayRef sizes, double shift) {
    return (random_tensor(seed, sizes) + shift).to(type).requires_grad_();
  };
  const Tensor x = leaf(1, {2, rows, dim}, 50), weight = leaf(2, {dim}, 1), bias = leaf(3, {dim}, 0);
  const Tensor out =
      by_aten ? at::layer_norm(x, {dim}, weight, bias, 1e-5) : layer_norm(x, weight, bias, 1e-5, out_type);
  out.backward(random_tensor(4, {2, rows, dim}).to(at::kBFloat16).to(out.scalar_type()));
  return {out.detach(), x.grad(), weight.grad(), bias.grad()};
}

constexpr int64_t kSizes[][2] = {{32, 64}, {100, 50}, {1, 7}, {65, 256}};

TEST(LayerNormFunction, IsLayerNorm) {
  for (const auto& [rows, dim] : kSizes) {
    const Results exact = run(rows, dim, at::kDouble, at::kDouble, /*by_aten=*/true);
    for (const auto& [type, out_type, out_bound, bound] : {std::tuple{at::kDouble, at::kDouble, 1e-12, 1e-10},
                                                           {at::kFloat, at::kFloat, 1e-5, 1e-4},
                                                           {at::kFloat, at::kBFloat16, 4e-3, 1e-4}}) {
      const Results actual = run(rows, dim, type, out_type);
      EXPECT_EQ(actual.out.scalar_type(), out_type);
      EXPECT_EQ(actual.x.scalar_type(), type);
      EXPECT_TRUE(close_to(actual.out, exact.out, out_bound)) << rows << " " << dim;
      EXPECT_TRUE(close_to(actual.x, exact.x, bound)) << rows << " " << dim;
      EXPECT_TRUE(close_to(actual.weight, exact.weight, bound)) << rows << " " << dim;
      EXPECT_TRUE(close_to(actual.bias, exact.bias, bound)) << rows << " " << dim;
    }
  }
}

TEST(LayerNormFunction, GradientsOfItsInputsOtherPathAreAdded) {
  for (const auto& [rows, dim] : kSizes) {
    for (const auto out_type : {at::kBFloat16, at::kFloat}) {
      const auto gradients = [&](bool beside) {
        const Tensor x = (random_tensor(1, {2, rows, dim}) + 3).requires_grad_();
        const Tensor weight = random_tensor(2, {dim}).requires_grad_(), bias = random_tensor(3, {dim}).requires_grad_();
        const auto [norm, input] = beside ? layer_norm_beside(x, weight, bias, 1e-5, out_type)
                                          : NormAndInput{layer_norm(x, weight, bias, 1e-5, out_type), x};
        EXPECT_TRUE(bitwise_equal(input, x));
        const Tensor factors = random_tensor(4, x.sizes());
        at::add((norm.to(at::kFloat) * factors).sum(), (input.sin() * factors).sum()).backward();
        return std::array{norm.detach(), x.grad(), weight.grad(), bias.grad()};
      };
      const auto expected = gradients(false), actual = gradients(true);
      EXPECT_TRUE(close_to(actual[1], expected[1], 1e-6)) << "one rounding less, in " << dim << " dimensions";
      for (const size_t i : {0, 2, 3}) EXPECT_TRUE(bitwise_equal(actual[i], expected[i])) << i << " " << dim;
    }
  }
}

TEST(LayerNormFunction, EitherPathMayBeTheOnlyOne) {
  const auto gradient = [&](bool of_norm) {
    const Tensor x = random_tensor(1, {5, 32}).requires_grad_();
    const auto [norm, input] = layer_norm_beside(x, at::ones({32}), at::zeros({32}), 1e-5, at::kBFloat16);
    (of_norm ? norm.to(at::kFloat).square().sum() / 2 * 3 : (3 * input).sum()).backward();
    return x.grad();
  };
  EXPECT_TRUE(bitwise_equal(gradient(false), at::full({5, 32}, 3.0F)));
  const Tensor x = random_tensor(1, {5, 32}).requires_grad_();
  (layer_norm(x, at::ones({32}), at::zeros({32}), 1e-5, at::kBFloat16).to(at::kFloat).square().sum() / 2 * 3)
      .backward();
  EXPECT_TRUE(bitwise_equal(gradient(true), x.grad()));
}

TEST(LayerNormFunction, DoesNotDependOnThreads) {
  const int threads = at::get_num_threads();
  at::set_num_threads(1);
  const Results one = run(100, 48, at::kFloat, at::kBFloat16);
  at::set_num_threads(3);
  const Results three = run(100, 48, at::kFloat, at::kBFloat16);
  at::set_num_threads(threads);
  EXPECT_TRUE(bitwise_equal(three.out, one.out));
  EXPECT_TRUE(bitwise_equal(three.x, one.x));
  EXPECT_TRUE(bitwise_equal(three.weight, one.weight));
  EXPECT_TRUE(bitwise_equal(three.bias, one.bias));
}

TEST(LayerNormFunction, WeightsOfAnotherSizeAreAnError) {
  EXPECT_THROW(layer_norm(at::ones({2, 4}), at::ones({3}), at::ones({3}), 1e-5, at::kFloat), c10::ValueError);
}

}  // namespace
}  // namespace dalle::layers

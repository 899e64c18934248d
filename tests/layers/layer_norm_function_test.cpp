// Layer norm in one pass against ATen's in f64.
#include "dalle/layers/layer_norm_function.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

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

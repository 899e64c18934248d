// Products with int8 matrices against f64, by operators and, where there is a GPU, by the kernel.
#include "dalle/layers/int8_product.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <limits>

#include "support/random_tensor.h"
#include "support/tensor_matchers.h"

namespace dalle::layers {
namespace {

using testing::close_to;
using testing::random_tensor;

TEST(Int8Product, WeightsAreOffByHalfALevelAtMost) {
  Tensor weight = random_tensor(1, {40, 70});
  weight[7].zero_();
  const Int8Matrix matrix = quantise_outputs(weight);
  EXPECT_EQ(matrix.weight_NK.scalar_type(), at::kChar);
  EXPECT_EQ(matrix.weight_NK.abs().amax().item<int64_t>(), 127);
  const Tensor back = matrix.weight_NK.to(at::kFloat) * matrix.scale_N.unsqueeze(1);
  EXPECT_TRUE((back - weight).abs().le(matrix.scale_N.unsqueeze(1) * 0.5001).all().item<bool>());
  EXPECT_TRUE(back[7].eq(0).all().item<bool>());
}

void check_on(at::Device device) {
  for (const int64_t depth : {7, 16, 48, 512, 1040}) {
    for (const int64_t columns : {1, 5, 64, 301}) {
      const Int8Matrix matrix = quantise_outputs(random_tensor(1, {columns, depth}));
      const Tensor exact = matrix.weight_NK.to(at::kDouble) * matrix.scale_N.to(at::kDouble).unsqueeze(1);
      const Int8Matrix there{matrix.weight_NK.to(device), matrix.scale_N.to(device)};
      for (const int64_t rows : {1, 3, 8, 9, 20}) {
        for (const auto type : {at::kFloat, at::kBFloat16}) {
          const Tensor x = random_tensor(2, {rows, depth}).to(type);
          const Tensor out = int8_product(x.to(device), there);
          EXPECT_EQ(out.scalar_type(), at::kFloat);
          EXPECT_TRUE(close_to(out.cpu(), at::matmul(x.to(at::kDouble), exact.t()), 1e-4))
              << rows << " x " << depth << " x " << columns << " " << type;
        }
      }
    }
  }
}

TEST(Int8Product, ByOperatorsItIsTheFormula) { check_on(at::kCPU); }

TEST(Int8Product, ByTheKernelItIsTheFormula) {
  if (!at::hasCUDA()) GTEST_SKIP() << "no GPU";
  check_on(at::Device(at::kCUDA, 0));
}

TEST(Int8Product, WhatItCannotTakeIsRefused) {
  EXPECT_THROW(quantise_outputs(at::full({2, 2}, std::numeric_limits<float>::quiet_NaN())), c10::ValueError);
  EXPECT_THROW(quantise_outputs(at::ones({2, 2}, at::kDouble)), c10::ValueError);
  const Int8Matrix matrix = quantise_outputs(at::ones({4, 16}));
  EXPECT_THROW(int8_product(at::ones({2, 15}), matrix), c10::ValueError);
  EXPECT_THROW(int8_product(at::ones({2, 16}, at::kDouble), matrix), c10::ValueError);
}

}  // namespace
}  // namespace dalle::layers

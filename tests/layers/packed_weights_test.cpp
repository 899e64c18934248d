// Products with packed weights against f64, for every tail of rows, columns and depth; and that a row's result depends on
// nothing but the row.
#include "dalle/layers/packed_weights.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <limits>
#include <vector>

#include "support/random_tensor.h"
#include "support/tensor_matchers.h"

namespace dalle::layers {
namespace {

using testing::bitwise_equal;
using testing::close_to;
using testing::random_tensor;

constexpr WeightFormat kFormats[] = {WeightFormat::kF32, WeightFormat::kBf16, WeightFormat::kInt8};

struct Threads {
  explicit Threads(int count) { at::set_num_threads(count); }
  ~Threads() { at::set_num_threads(before); }
  int before = at::get_num_threads();
};

Tensor times(const Tensor& x, const PackedWeights& weight, const Tensor& bias = {},
             ProductKernels kernels = ProductKernels::kFastest) {
  const Tensor out = at::full({x.size(0), weight.columns() + 3}, -77.0f);  // a stride of its own
  ProductScratch scratch;
  multiply(x.const_data_ptr<float>(), x.stride(0), x.size(0), weight,
           bias.defined() ? bias.const_data_ptr<float>() : nullptr, out.mutable_data_ptr<float>(), out.stride(0),
           scratch, kernels);
  EXPECT_TRUE(out.slice(1, weight.columns()).eq(-77).all().item<bool>()) << "written past the columns";
  return out.slice(1, 0, weight.columns());
}

/// What the format rounds the operands to, in f64.
Tensor rounded(const Tensor& x, WeightFormat format, double levels) {
  if (format == WeightFormat::kF32) return x.to(at::kDouble);
  if (format == WeightFormat::kBf16) return x.to(at::kBFloat16).to(at::kDouble);
  const Tensor largest = x.abs().amax(1, /*keepdim=*/true), inverse = levels / largest;
  return (x * inverse).round().to(at::kDouble) * (largest / levels).to(at::kDouble);
}

TEST(PackedWeights, ProductsAreThoseOfTheRoundedOperands) {
  for (const WeightFormat format : kFormats) {
    for (const auto kernels : {ProductKernels::kFastest, ProductKernels::kPortable}) {
      for (const int64_t depth : {1, 2, 7, 32, 129, 515, 2051}) {
        for (const int64_t columns : {1, 16, 47, 64, 200}) {
          for (const int64_t rows : {1, 2, 5, 6, 7, 13, 16, 17, 31, 32, 33, 100}) {
            if (depth > 600 && rows > 7) continue;
            const Tensor x = random_tensor(1, {rows, depth}), w = random_tensor(2, {columns, depth});
            const Tensor bias = random_tensor(3, {columns});
            const Tensor a = rounded(x, format, 32767), b = rounded(w, format, 127);
            const Tensor expected = at::matmul(a, b.t()) + bias.to(at::kDouble);
            const Tensor magnitude = at::matmul(a.abs(), b.abs().t()) + bias.abs().to(at::kDouble);
            const Tensor error = (times(x, PackedWeights(w, format), bias, kernels) - expected).abs() / magnitude;
            EXPECT_LT(error.max().item<double>(), 1e-6)
                << static_cast<int>(format) << " " << rows << " x " << depth << " x " << columns;
          }
        }
      }
    }
  }
}

TEST(PackedWeights, RowsThatAreBf16AlreadyGiveTheSameBits) {
  for (const int64_t depth : {7, 32, 515}) {
    const Tensor x = random_tensor(1, {33, depth}), bias = random_tensor(3, {47});
    const PackedWeights weight(random_tensor(2, {47, depth}), WeightFormat::kBf16);
    const Tensor rows = at::ones({33, weight.padded_depth() + 5}, at::kBFloat16);  // what is behind a row meets zeros
    rows.slice(1, 0, depth).copy_(x);
    for (const auto kernels : {ProductKernels::kFastest, ProductKernels::kPortable}) {
      const Tensor out = at::empty({33, 47});
      multiply(static_cast<const uint16_t*>(rows.const_data_ptr()), rows.stride(0), 33, weight,
               bias.const_data_ptr<float>(), out.mutable_data_ptr<float>(), out.stride(0), kernels);
      EXPECT_TRUE(bitwise_equal(out, times(x, weight, bias, kernels).contiguous())) << depth;
    }
  }
  const PackedWeights in_f32(random_tensor(2, {16, 32}), WeightFormat::kF32);
  float out[16];
  EXPECT_THROW(multiply(static_cast<const uint16_t*>(nullptr), 32, 1, in_f32, nullptr, out, 16), c10::ValueError);
}

TEST(PackedWeights, Int8WeightsAreOffByHalfALevelAtMost) {
  const Tensor x = at::eye(70), w = random_tensor(5, {30, 70});
  const Tensor error = (times(x, PackedWeights(w, WeightFormat::kInt8)).t() - w).abs();
  const Tensor half_a_level = w.abs().amax(1, /*keepdim=*/true) / 254;
  EXPECT_TRUE(error.le(half_a_level * 1.001).all().item<bool>());
  EXPECT_GT(error.max().item<float>(), 0);
}

TEST(PackedWeights, ARowDoesNotDependOnItsBatchBitForBit) {
  for (const WeightFormat format : kFormats) {
    const Tensor x = random_tensor(1, {100, 1030}), bias = random_tensor(3, {150});
    const PackedWeights weight(random_tensor(2, {150, 1030}), format);
    const Tensor together = times(x, weight, bias);
    for (const int64_t row : {0, 5, 17, 41, 99}) {
      EXPECT_TRUE(bitwise_equal(times(x.slice(0, row, row + 1), weight, bias), together.slice(0, row, row + 1))) << row;
    }
    EXPECT_TRUE(bitwise_equal(times(x.slice(0, 3, 11), weight, bias), together.slice(0, 3, 11)));
  }
}

TEST(PackedWeights, ThreadsChangeNoBit) {
  for (const WeightFormat format : kFormats) {
    const Tensor x = random_tensor(1, {9, 300});
    const PackedWeights weight(random_tensor(2, {500, 300}), format);
    const Threads one(1);
    const Tensor alone = times(x, weight);
    const Threads two(2);
    EXPECT_TRUE(bitwise_equal(times(x, weight), alone));
  }
}

TEST(PackedWeights, ATransposedMatrixIsGivenByItsStrides) {
  const Tensor w = random_tensor(2, {40, 90}), x = random_tensor(1, {3, 40});
  const PackedWeights weight(w.const_data_ptr<float>(), 90, 40, /*column_stride=*/1, /*depth_stride=*/90,
                             WeightFormat::kF32);
  EXPECT_TRUE(close_to(times(x, weight), at::matmul(x.to(at::kDouble), w.to(at::kDouble)), 1e-6));
}

TEST(PackedWeights, TheLargestSumsOfIntegersDoNotOverflow) {
  const Tensor x = at::full({1, 4096}, 3.0f), w = at::full({16, 4096}, -2.0f);
  for (const auto kernels : {ProductKernels::kFastest, ProductKernels::kPortable}) {
    EXPECT_TRUE(
        close_to(times(x, PackedWeights(w, WeightFormat::kInt8), {}, kernels), at::full({1, 16}, -24576.0), 1e-6));
  }
}

TEST(PackedWeights, ZeroRowsAndColumnsGiveZero) {
  for (const WeightFormat format : kFormats) {
    Tensor w = random_tensor(2, {20, 33}), x = random_tensor(1, {2, 33});
    w[3].zero_();
    x[1].zero_();
    const Tensor out = times(x, PackedWeights(w, format));
    EXPECT_EQ(out[0][3].item<float>(), 0);
    EXPECT_TRUE(out[1].eq(0).all().item<bool>());
  }
}

TEST(PackedWeights, BytesAreThoseOfTheFormat) {
  const Tensor w = random_tensor(2, {100, 64});  // columns padded to 112
  EXPECT_EQ(PackedWeights(w, WeightFormat::kF32).bytes(), 112 * 64 * 4);
  EXPECT_EQ(PackedWeights(w, WeightFormat::kBf16).bytes(), 112 * 64 * 2);
  EXPECT_EQ(PackedWeights(w, WeightFormat::kInt8).bytes(), 112 * (64 + 4) + 100 * 4);
  EXPECT_EQ(PackedWeights(random_tensor(2, {64, 515}), WeightFormat::kInt8).bytes(), 64 * (576 + 2 * 4) + 64 * 4);
}

TEST(PackedWeights, MatricesInAnArenaAreApart) {
  WeightArena arena;
  for (const WeightFormat format : kFormats) {
    std::vector<PackedWeights> apart, together;
    const Tensor x = random_tensor(9, {2, 300});
    for (uint64_t seed = 0; seed < 40; ++seed) {  // of f32: more than a piece
      const Tensor w = random_tensor(seed, {seed == 20 ? 4000 : 410, 300});
      apart.emplace_back(w, format);
      together.emplace_back(w, format, &arena);
    }
    for (size_t i = 0; i < apart.size(); ++i) {
      EXPECT_EQ(together[i].bytes(), apart[i].bytes());
      EXPECT_TRUE(bitwise_equal(times(x, together[i]), times(x, apart[i]))) << i;
    }
  }
}

TEST(PackedWeights, WhatItCannotTakeIsRefused) {
  EXPECT_THROW(PackedWeights(at::ones({2, 2}, at::kDouble), WeightFormat::kF32), c10::ValueError);
  EXPECT_THROW(PackedWeights(at::ones({4}), WeightFormat::kF32), c10::ValueError);
  EXPECT_THROW(PackedWeights(at::ones({0, 4}), WeightFormat::kF32), c10::ValueError);
  const Tensor bad = at::full({2, 2}, std::numeric_limits<float>::infinity());
  EXPECT_THROW(PackedWeights(bad, WeightFormat::kInt8), c10::ValueError);
}

}  // namespace
}  // namespace dalle::layers

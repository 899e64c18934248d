// The packed orders element by element.
#include "dalle/layers/bf16_pack.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numeric>
#include <vector>

#include "dalle/core/bf16.h"
#include "dalle/layers/bf16_product.h"

namespace dalle::layers::detail {
namespace {

constexpr int64_t kRows = 64, kColumns = 48, kStride = 50, kOutColumns = 64;

class Bf16Pack : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!has_bf16_products()) GTEST_SKIP() << "no AVX-512 bf16 here, and no use for these";
    std::iota(in_.begin(), in_.end(), uint16_t{1});
  }
  static uint16_t packed(const std::vector<uint16_t>& out, int64_t row, int64_t column) {
    return out[static_cast<size_t>((row / 2 * kOutColumns + column) * 2 + row % 2)];
  }
  std::vector<uint16_t> in_ = std::vector<uint16_t>(kRows * 66);
};

TEST_F(Bf16Pack, RowsGoInPairs) {
  std::vector<uint16_t> out(kRows * kOutColumns, 0xFFFF);
  pack_rows(in_.data(), kStride, kRows, kColumns, out.data(), kOutColumns);
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t c = 0; c < kOutColumns; ++c) {
      const uint16_t expected = c < kColumns ? in_[static_cast<size_t>(r * kStride + c)] : uint16_t{0xFFFF};
      ASSERT_EQ(packed(out, r, c), expected) << r << " " << c;
    }
  }
}

TEST_F(Bf16Pack, TransposedMatricesGiveTheSame) {
  std::vector<uint16_t> out(kRows * kOutColumns, 0xFFFF);
  constexpr int64_t kInStride = 66;
  pack_transposed(in_.data(), kInStride, kRows, kColumns, out.data(), kOutColumns);
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t c = 0; c < kColumns; ++c) {
      ASSERT_EQ(packed(out, r, c), in_[static_cast<size_t>(c * kInStride + r)]) << r << " " << c;
    }
  }
}

TEST_F(Bf16Pack, GroupsOfColumnsLieTogether) {
  constexpr int64_t kMany = 160, kManyStride = 164;  // several groups at once, and the rest one by one
  std::vector<uint16_t> in(kRows * kManyStride), out(kRows * kMany);
  for (size_t i = 0; i < in.size(); ++i) in[i] = float_to_bf16(static_cast<float>(i % 61) - 30);
  std::vector<float> sums(kMany);
  pack_groups(in.data(), kManyStride, kRows, kMany, out.data(), sums.data());
  for (int64_t c = 0; c < kMany; ++c) {
    float sum = 0;
    for (int64_t r = 0; r < kRows; ++r) {
      const uint16_t expected = in[static_cast<size_t>(r * kManyStride + c)];
      const int64_t pair = c / kPackColumns * (kRows / 2) + r / 2;
      ASSERT_EQ(out[static_cast<size_t>((pair * kPackColumns + c % kPackColumns) * 2 + r % 2)], expected)
          << r << " " << c;
      sum += bf16_to_float(expected);
    }
    EXPECT_EQ(sums[static_cast<size_t>(c)], sum) << c;
  }
}

TEST_F(Bf16Pack, ANullRowIsZeros) {
  std::vector<uint16_t> out(2 * kPackColumns, 0xFFFF);
  pack_edge(nullptr, in_.data(), kPackColumns, out.data());
  for (size_t c = 0; c < kPackColumns; ++c) {
    EXPECT_EQ(out[2 * c], 0);
    EXPECT_EQ(out[2 * c + 1], in_[c]);
  }
}

TEST_F(Bf16Pack, Transpose) {
  std::vector<uint16_t> out(kColumns * 70, 0xFFFF);
  std::vector<float> sums(kColumns, -1), expected(kColumns, 0);
  for (size_t i = 0; i < in_.size(); ++i) in_[i] = float_to_bf16(static_cast<float>(i % 100));
  transpose(in_.data(), kStride, kRows, kColumns, out.data(), 70, sums.data());
  for (int64_t r = 0; r < kRows; ++r) {
    for (int64_t c = 0; c < kColumns; ++c) {
      ASSERT_EQ(out[static_cast<size_t>(c * 70 + r)], in_[static_cast<size_t>(r * kStride + c)]) << r << " " << c;
      expected[static_cast<size_t>(c)] += bf16_to_float(in_[static_cast<size_t>(r * kStride + c)]);
    }
  }
  EXPECT_EQ(sums, expected);  // small whole numbers: exact
}

TEST_F(Bf16Pack, SplitsAnF32NumberIntoTwo) {
  std::vector<float> in(2 * 40);
  for (size_t i = 0; i < in.size(); ++i) in[i] = std::exp(static_cast<float>(i) / 7) * (i % 2 == 0 ? 1.0f : -1.0f);
  for (const int64_t low_third : {1, 2}) {
    std::vector<uint16_t> out(2 * 3 * 32);
    split_rows(in.data(), 40, 2, 32, low_third, out.data());
    for (size_t r = 0; r < 2; ++r) {
      for (size_t c = 0; c < 32; ++c) {
        const auto third = [&](int64_t i) { return bf16_to_float(out[r * 96 + static_cast<size_t>(i) * 32 + c]); };
        const float x = in[r * 40 + c], high = bf16_to_float(float_to_bf16(x));
        EXPECT_EQ(third(0), high);
        EXPECT_EQ(third(3 - low_third), high);
        EXPECT_EQ(third(low_third), bf16_to_float(float_to_bf16(x - high)));
      }
    }
  }
}

}  // namespace
}  // namespace dalle::layers::detail

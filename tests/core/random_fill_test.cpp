// Stretches of a stream against its whole row.
#include "dalle/core/random_fill.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <vector>

#include "support/tensor_matchers.h"

namespace dalle {
namespace {

TEST(RandomFill, StretchesOfARowEqualTheWholeBitForBit) {
  const RandomKey key = random_key(5, Purpose::kSampling, 1, 2);
  const Tensor gumbel = gumbel_rows({&key, 1}, 500, at::kCPU, 3)[0],
               uniform = uniform_rows({&key, 1}, 500, at::kCPU, 3)[0];
  for (const auto& [first, size] : {std::pair{0, 500}, {61, 64}, {7, 1}, {125, 200}}) {
    const Tensor out = at::empty({2, size}, at::kFloat);
    fill_gumbel(key, 3 + first, size, out[0].mutable_data_ptr<float>());
    fill_uniform(key, 3 + first, size, out[1].mutable_data_ptr<float>());
    EXPECT_TRUE(testing::bitwise_equal(out[0], gumbel.slice(0, first, first + size)));
    EXPECT_TRUE(testing::bitwise_equal(out[1], uniform.slice(0, first, first + size)));
  }
}

TEST(RandomFill, ElementsAreWordsOfTheBlockFunction) {
  const RandomKey key{0x123456789ABCDEF0, 0xFEDCBA9876543210};
  constexpr int64_t kLastOf32Bits = 4 * (int64_t{1} << 32);  // the block's number crosses 32 bits here
  for (const int64_t offset : {int64_t{0}, kLastOf32Bits - 96, kLastOf32Bits - 33}) {
    std::vector<float> out(200);
    fill_uniform(key, offset, 200, out.data());
    for (int64_t i = 0; i < 200; ++i) {
      const auto block = static_cast<uint64_t>((offset + i) / 4);
      const auto low = [](uint64_t x) { return static_cast<uint32_t>(x); };
      const auto high = [](uint64_t x) { return static_cast<uint32_t>(x >> 32); };
      const auto words =
          philox({low(block), high(block), low(key.stream), high(key.stream)}, {low(key.seed), high(key.seed)});
      const uint32_t word = words[static_cast<size_t>((offset + i) % 4)];
      ASSERT_EQ(out[static_cast<size_t>(i)], (static_cast<float>(word >> 9) + 0.5f) * 0x1p-23f) << offset << " + " << i;
    }
  }
}

TEST(RandomFill, LargestOfStretches) {
  const RandomKey key = random_key(5, Purpose::kSampling, 1, 2);
  for (const int64_t offset : {0, 128, 17}) {
    for (const int64_t size : {1, 63, 64, 65, 8192, 1000}) {
      std::vector<float> all(static_cast<size_t>(size)), largest(static_cast<size_t>((size + 63) / 64 + 1), -7.0f);
      fill_uniform(key, offset, size, all.data());
      largest_uniforms(key, offset, size, largest.data());
      EXPECT_EQ(largest.back(), -7.0f) << "written past the end";
      for (int64_t first = 0; first < size; first += 64) {
        const auto begin = all.begin() + first, end = all.begin() + std::min(size, first + 64);
        EXPECT_EQ(largest[static_cast<size_t>(first / 64)], *std::max_element(begin, end)) << offset << " " << first;
      }
    }
  }
}

}  // namespace
}  // namespace dalle

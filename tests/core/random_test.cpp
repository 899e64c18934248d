// Philox against the published vectors, the vectorised rows against the scalar definition, and the distributions.
#include "dalle/core/random.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <map>
#include <set>

#include "support/tensor_matchers.h"

namespace dalle {
namespace {

using Words = std::array<uint32_t, 4>;
using testing::bitwise_equal;

constexpr uint32_t kOnes = 0xffffffff;

/// Word `index` of a stream, by the definition at the head of random.h.
uint32_t word(RandomKey key, uint64_t index) {
  const uint64_t block = index / 4;
  const auto low = [](uint64_t x) { return static_cast<uint32_t>(x); };
  const auto high = [](uint64_t x) { return static_cast<uint32_t>(x >> 32); };
  return philox({low(block), high(block), low(key.stream), high(key.stream)},
                {low(key.seed), high(key.seed)})[index % 4];
}

Tensor reference_rows(const std::vector<RandomKey>& keys, int64_t size, int64_t offset) {
  Tensor out = at::empty({static_cast<int64_t>(keys.size()), size}, at::kFloat);
  float* next = out.mutable_data_ptr<float>();
  for (const RandomKey& key : keys) {
    for (int64_t i = 0; i < size; ++i) {
      const uint32_t bits = word(key, static_cast<uint64_t>(offset + i)) >> 9;
      *next++ = static_cast<float>((static_cast<double>(bits) + 0.5) / 8388608.0);
    }
  }
  return out;
}

std::vector<RandomKey> some_keys(size_t count) {
  std::vector<RandomKey> keys;
  for (uint64_t i = 0; i < count; ++i) keys.push_back(random_key(7 + (i << 40), Purpose::kGumbel, i));
  return keys;
}

/// Restores the number of threads.
struct Threads {
  explicit Threads(int count) { at::set_num_threads(count); }
  ~Threads() { at::set_num_threads(before); }
  int before = at::get_num_threads();
};

TEST(Philox, KnownAnswersOfRandom123) {
  EXPECT_EQ(philox({0, 0, 0, 0}, {0, 0}), (Words{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox({kOnes, kOnes, kOnes, kOnes}, {kOnes, kOnes}),
            (Words{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}));
  EXPECT_EQ(philox({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (Words{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(UniformRows, EqualTheScalarDefinitionForAnyShapeAndOffset) {
  for (const int64_t size : {0, 1, 3, 4, 63, 64, 65, 1000}) {
    for (const int64_t offset : {0, 1, 5, 63, 64, 130}) {
      const auto keys = some_keys(3);
      EXPECT_TRUE(bitwise_equal(uniform_rows(keys, size, at::kCPU, offset), reference_rows(keys, size, offset)))
          << size << " from " << offset;
    }
  }
  EXPECT_EQ(uniform_rows({}, 5, at::kCPU).sizes(), (std::vector<int64_t>{0, 5}));
}

TEST(UniformRows, BlockNumbersBeyond32Bits) {
  const auto keys = some_keys(2);
  const int64_t offset = (int64_t{1} << 34) - 37;  // the block counter carries into its second word inside the row
  EXPECT_TRUE(bitwise_equal(uniform_rows(keys, 101, at::kCPU, offset), reference_rows(keys, 101, offset)));
}

TEST(UniformRows, DoNotDependOnThreads) {
  const auto keys = some_keys(3);
  constexpr int64_t kSize = 3 * 16384 + 11;  // several pieces of parallel work and a rest
  const Tensor expected = reference_rows(keys, kSize, 9);
  for (const int threads : {1, 2}) {
    const Threads scope(threads);
    EXPECT_TRUE(bitwise_equal(uniform_rows(keys, kSize, at::kCPU, 9), expected)) << threads;
  }
}

TEST(UniformRows, OffsetsJoin) {
  const auto keys = some_keys(2);
  const Tensor whole = uniform_rows(keys, 500, at::kCPU, 3);
  const Tensor parts = at::cat({uniform_rows(keys, 123, at::kCPU, 3), uniform_rows(keys, 377, at::kCPU, 126)}, 1);
  EXPECT_TRUE(bitwise_equal(parts, whole));
}

TEST(UniformRows, OpenIntervalWithTheRightMoments) {
  const auto keys = some_keys(1);
  const Tensor u = uniform_rows(keys, 4'000'000, at::kCPU);
  EXPECT_GT(u.min().item<float>(), 0.0F);
  EXPECT_LT(u.max().item<float>(), 1.0F);
  EXPECT_TRUE(at::isfinite(gumbel_rows(keys, 4'000'000, at::kCPU)).all().item<bool>());
  EXPECT_NEAR(u.to(at::kDouble).mean().item<double>(), 0.5, 5 * std::sqrt(1.0 / 12 / 4e6));
  EXPECT_NEAR(u.to(at::kDouble).var().item<double>(), 1.0 / 12, 2e-4);
  // The smallest and largest 23-bit values are inside the interval too.
  EXPECT_GT(0.5F * 0x1p-23F, 0.0F);
  EXPECT_LT((8388607.0F + 0.5F) * 0x1p-23F, 1.0F);
}

TEST(UniformRows, GpuGivesTheSameBits) {
  if (!at::hasCUDA()) GTEST_SKIP() << "no GPU";
  const auto keys = some_keys(3);
  EXPECT_TRUE(bitwise_equal(uniform_rows(keys, 1001, at::Device(at::kCUDA, 0), 5), reference_rows(keys, 1001, 5)));
}

TEST(GumbelRows, MeanAndVarianceOfTheStandardGumbel) {
  const auto keys = some_keys(4);
  const Tensor g = gumbel_rows(keys, 1'000'000, at::kCPU).to(at::kDouble);
  EXPECT_NEAR(g.mean().item<double>(), 0.5772156649, 5 * std::sqrt(1.6449 / 4e6));
  EXPECT_NEAR(g.var().item<double>(), 1.6449340668, 0.01);
  const Tensor u = uniform_rows(keys, 1000, at::kCPU).to(at::kDouble);
  EXPECT_TRUE(testing::close_to(gumbel_rows(keys, 1000, at::kCPU), -(-u.log()).log(), 1e-6));
}

TEST(GumbelRows, ArgmaxOfLogitsPlusGumbelDrawsFromTheSoftmax) {
  const Tensor p = at::tensor({0.5, 0.3, 0.15, 0.05}, at::kDouble);
  constexpr int64_t kDraws = 200'000;
  const Tensor noise = gumbel_rows(some_keys(1), 4 * kDraws, at::kCPU).view({kDraws, 4});
  const Tensor counts = at::bincount((noise + p.log()).argmax(1), {}, 4).to(at::kDouble);
  const double chi_square = ((counts - p * kDraws).square() / (p * kDraws)).sum().item<double>();
  EXPECT_LT(chi_square, 16.27);  // 99.9 % of chi-square with 3 degrees of freedom
}

TEST(RandomStream, IsTheStreamOfTheRows) {
  const RandomKey key = random_key(3, Purpose::kAugment, 1, 2);
  RandomStream words(key), numbers(key);
  const Tensor row = uniform_rows({{key}}, 21, at::kCPU);
  for (uint64_t i = 0; i < 21; ++i) {
    EXPECT_EQ(words.next(), word(key, i));
    EXPECT_EQ(numbers.uniform(), row[0][static_cast<int64_t>(i)].item<double>());
  }
}

TEST(RandomStream, IntegerCoversBothEndsWithoutBias) {
  RandomStream stream(random_key(1, Purpose::kShuffle));
  constexpr int kDraws = 110'000, kValues = 11;
  std::array<int, kValues> counts{};
  for (int i = 0; i < kDraws; ++i) {
    const int64_t value = stream.integer(-3, 7);
    ASSERT_GE(value, -3);
    ASSERT_LE(value, 7);
    ++counts[static_cast<size_t>(value + 3)];
  }
  double chi_square = 0;
  for (const int count : counts) chi_square += (count - 10'000.0) * (count - 10'000.0) / 10'000.0;
  EXPECT_LT(chi_square, 29.59);  // 99.9 % of chi-square with 10 degrees of freedom
  EXPECT_GT(chi_square, 1.0);    // too even is not random either
  EXPECT_EQ(stream.integer(5, 5), 5);
}

TEST(RandomStream, IntegerOfWideRanges) {
  RandomStream stream(random_key(2, Purpose::kShuffle));
  int negative = 0, upper_third = 0;
  constexpr int64_t kThird = INT64_MAX / 3;
  for (int i = 0; i < 3000; ++i) {
    negative += stream.integer(INT64_MIN, INT64_MAX) < 0 ? 1 : 0;
    // With a plain modulo of 64 bits over 3/4 of their range, the lower third would come up too often.
    const int64_t value = stream.integer(INT64_MIN, kThird * 2);
    upper_third += value >= 0 ? 1 : 0;
  }
  EXPECT_NEAR(negative, 1500, 140);
  EXPECT_NEAR(upper_third, 3000 * 0.4, 135);
}

TEST(Permutation, HoldsEachNumberOnceAndEveryOrderComesUp) {
  auto order = permutation(random_key(5, Purpose::kDataOrder), 1000);
  EXPECT_FALSE(std::is_sorted(order.begin(), order.end()));
  std::sort(order.begin(), order.end());
  for (int64_t i = 0; i < 1000; ++i) ASSERT_EQ(order[static_cast<size_t>(i)], i);
  EXPECT_TRUE(permutation({}, 0).empty());
  EXPECT_EQ(permutation({}, 1), std::vector<int64_t>{0});

  std::map<std::vector<int64_t>, int> counts;
  for (uint64_t draw = 0; draw < 6000; ++draw) ++counts[permutation(random_key(9, Purpose::kDataOrder, draw), 3)];
  ASSERT_EQ(counts.size(), 6U);
  double chi_square = 0;
  for (const auto& [_, count] : counts) chi_square += (count - 1000.0) * (count - 1000.0) / 1000.0;
  EXPECT_LT(chi_square, 20.52);  // 99.9 %, 5 degrees of freedom
}

TEST(Normal, Moments) {
  const Tensor x = normal(random_key(0, Purpose::kInit, 1), 1'000'001).to(at::kDouble);
  ASSERT_EQ(x.numel(), 1'000'001);
  EXPECT_NEAR(x.mean().item<double>(), 0, 5e-3);
  EXPECT_NEAR(x.square().mean().item<double>(), 1, 0.01);
  EXPECT_NEAR(x.pow(3).mean().item<double>(), 0, 0.02);
  EXPECT_NEAR(x.pow(4).mean().item<double>(), 3, 0.06);
  // Neighbours come from one Box-Muller pair and are independent all the same.
  EXPECT_NEAR((x.slice(0, 0, 1'000'000, 2) * x.slice(0, 1, 1'000'001, 2)).mean().item<double>(), 0, 0.01);
}

TEST(RandomKeys, DependOnEveryArgument) {
  const auto same = [](RandomKey a, RandomKey b) { return a.seed == b.seed && a.stream == b.stream; };
  const RandomKey key = random_key(1, Purpose::kInit, 2, 3);
  EXPECT_TRUE(same(key, random_key(1, Purpose::kInit, 2, 3)));
  EXPECT_FALSE(same(key, random_key(4, Purpose::kInit, 2, 3)));
  EXPECT_FALSE(same(key, random_key(1, Purpose::kDropout, 2, 3)));
  EXPECT_FALSE(same(key, random_key(1, Purpose::kInit, 4, 3)));
  EXPECT_FALSE(same(key, random_key(1, Purpose::kInit, 2, 4)));
  EXPECT_FALSE(same(key, random_key(1, Purpose::kInit, 3, 2)));
  std::set<uint64_t> streams;
  for (uint64_t a = 0; a < 100; ++a) {
    for (uint64_t b = 0; b < 100; ++b) streams.insert(random_key(0, Purpose::kSampling, a, b).stream);
  }
  EXPECT_EQ(streams.size(), 10'000U);
}

TEST(RandomKeys, HashOfTextsIsStableAndSpreads) {
  std::set<uint64_t> hashes;
  for (const char* text : {"", "a", "b", "ab", "ba", "a cat", "a cat ", "A cat", "\xc3\xa4"})
    hashes.insert(stable_hash(text));
  EXPECT_EQ(hashes.size(), 9U);
  EXPECT_NE(stable_hash(std::string_view("\0", 1)), stable_hash(std::string_view("\0\0", 2)));
  // Recorded streams and initialisations hang on these values: they must never change.
  EXPECT_EQ(stable_hash("a red circle"), 0x2092a2b92e174a52ULL);
  EXPECT_EQ(random_key(1, Purpose::kSampling, 2, 3).stream, 0xecc9162aa6dbe010ULL);
  int flipped = 0;
  for (int bit = 0; bit < 8; ++bit) {
    const std::string other(1, static_cast<char>('a' ^ (1 << bit)));
    flipped += std::popcount(stable_hash("a") ^ stable_hash(other));
  }
  EXPECT_NEAR(flipped / 8.0, 32, 8);
}

}  // namespace
}  // namespace dalle

#include "dalle/data/sample_order.h"

#include <gtest/gtest.h>

#include <numeric>
#include <set>

#include "dalle/core/random.h"

namespace dalle::data {
namespace {

TEST(SampleOrder, EveryEpochIsAPermutation) {
  for (const int64_t size : {1, 5, 16, 17, 100}) {
    for (const int64_t streams : {1, 4, 16, 40}) {
      const SampleOrder order(size, 3, streams, true);
      for (int64_t epoch = 0; epoch < 3; ++epoch) {
        std::set<int64_t> seen;
        for (int64_t g = 0; g < size; ++g) seen.insert(order.index_at(epoch * size + g));
        EXPECT_EQ(static_cast<int64_t>(seen.size()), size);
        EXPECT_EQ(*seen.begin(), 0);
        EXPECT_EQ(*seen.rbegin(), size - 1);
      }
    }
  }
}

TEST(SampleOrder, PositionsGoRoundTheStreams) {
  // Streams are the residues modulo V; each is permuted by its own key.
  const SampleOrder order(23, 9, 5, true);
  for (int64_t g = 0; g < 23; ++g) {
    const int64_t stream = g % 5;
    const auto elements =
        permutation(random_key(9, Purpose::kDataOrder, 2, static_cast<uint64_t>(stream)), (23 - stream + 4) / 5);
    EXPECT_EQ(order.index_at(2 * 23 + g), stream + 5 * elements[static_cast<size_t>(g / 5)]);
  }
}

TEST(SampleOrder, DependsOnSeedAndEpochOnly) {
  const SampleOrder first(100, 1, 16, true);
  const SampleOrder again(100, 1, 16, true);
  const SampleOrder other(100, 2, 16, true);
  int same_epoch = 0;
  int same_seed = 0;
  for (int64_t g = 99; g >= 0; --g) {  // backwards and across epochs: the cache has no say
    EXPECT_EQ(again.index_at(g + 300), first.index_at(g + 300));
    EXPECT_EQ(again.index_at(g), first.index_at(g));
    same_epoch += first.index_at(g) == first.index_at(g + 100) ? 1 : 0;
    same_seed += first.index_at(g) == other.index_at(g) ? 1 : 0;
  }
  EXPECT_LT(same_epoch, 40);
  EXPECT_LT(same_seed, 40);
}

TEST(SampleOrder, WithoutShuffleFollowsTheSource) {
  const SampleOrder order(7, 1, 3, false);
  for (int64_t g = 0; g < 21; ++g) EXPECT_EQ(order.index_at(g), g % 7);
  EXPECT_EQ(order.epoch_of(13), 1);
}

}  // namespace
}  // namespace dalle::data

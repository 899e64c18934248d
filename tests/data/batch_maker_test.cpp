#include "dalle/data/batch_maker.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dalle/core/error.h"
#include "support/memory_source.h"

namespace dalle::data {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::memory_dataset;

const LoaderOptions kInOrder{.batch_size = 4, .image_size = 16, .seed = 2, .start_position = 8, .shuffle = false};

TEST(BatchMaker, MakesAnyBatchWithoutTheOnesBefore) {
  const Dataset dataset = memory_dataset(30);
  const BatchMaker maker(dataset, {}, kInOrder);
  const MadeBatch third = maker.make(2);
  EXPECT_THAT(third.batch.positions, ElementsAre(16, 17, 18, 19));
  EXPECT_THAT(third.batch.indices, ElementsAre(16, 17, 18, 19));
  EXPECT_TRUE(third.batch.images.equal(maker.make(2).batch.images));
  EXPECT_EQ(third.num_looked_at, 4);
  EXPECT_THAT(maker.make(5).batch.indices, ElementsAre(28, 29, 0, 1));
}

TEST(BatchMaker, SaysWhichSamplesWereBadAndWhy) {
  const Dataset dataset = memory_dataset(30, {9});
  const MadeBatch made = BatchMaker(dataset, {}, kInOrder).make(0);
  EXPECT_THAT(made.batch.indices, ElementsAre(8, 10, 10, 11));
  EXPECT_EQ(made.num_looked_at, 5);
  ASSERT_EQ(made.bad.size(), 1u);
  EXPECT_EQ(made.bad[0].index, 9);
  EXPECT_THAT(made.bad[0].reason, HasSubstr("memory: key9"));
}

TEST(BatchMaker, StacksIdsOfOneLengthOnlyAndCountsCutCaptions) {
  Batch batch;
  set_captions({{.ids = {1, 2}, .truncated = true}, {.ids = {3, -1}}}, batch);
  EXPECT_EQ(batch.caption_ids.sizes(), at::IntArrayRef({2, 2}));
  EXPECT_EQ(batch.caption_ids[1][0].item<int64_t>(), 3);
  EXPECT_EQ(batch.num_truncated, 1);
  EXPECT_THROW(set_captions({{.ids = {1, 2}}, {.ids = {3}}}, batch), c10::ValueError);
}

}  // namespace
}  // namespace dalle::data

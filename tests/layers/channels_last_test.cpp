#include "dalle/layers/channels_last.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "support/random_tensor.h"

namespace dalle::layers {
namespace {

TEST(ChannelsLast, RowsAreTheChannelsOfAPositionInRasterOrder) {
  const Tensor x = testing::random_tensor(1, {2, 5, 3, 4});
  for (const auto format : {at::MemoryFormat::Contiguous, at::MemoryFormat::ChannelsLast}) {
    const Tensor given = x.contiguous(format), rows = channel_rows(given);
    ASSERT_EQ(rows.sizes(), (std::vector<int64_t>{24, 5}));
    EXPECT_TRUE(at::equal(rows[(1 * 3 + 2) * 4 + 3], x.select(0, 1).select(1, 2).select(1, 3)));
    EXPECT_TRUE(at::equal(from_channel_rows(rows, x.sizes()), x));
    EXPECT_EQ(rows.data_ptr() == given.data_ptr(), format == at::MemoryFormat::ChannelsLast);
  }
}

TEST(ChannelsLast, TheReverseTakesAnotherNumberOfChannels) {
  const Tensor rows = testing::random_tensor(2, {24, 7});
  const Tensor out = from_channel_rows(rows, {2, 5, 3, 4});
  EXPECT_EQ(out.sizes(), (std::vector<int64_t>{2, 7, 3, 4}));
  EXPECT_TRUE(out.is_contiguous(at::MemoryFormat::ChannelsLast));
}

}  // namespace
}  // namespace dalle::layers

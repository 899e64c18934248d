// Batches of stored tokens: what is in them, that order and captions are those of the loader of pictures, crops by epoch.
#include "dalle/data/token_loader.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/data/captions.h"
#include "dalle/data/sample_order.h"
#include "support/temp_directory.h"
#include "support/thrown_message.h"
#include "support/token_shards.h"

namespace dalle::data {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct Shards {
  testing::TempDirectory scratch{"token-loader"};
  storage::TokenSet set = testing::write_token_set(scratch / "set", testing::token_info(6));
  TokenDataset tokens{{scratch / "set"}};
};

std::vector<Batch> read(const TokenDataset& tokens, const DataConfig& config, LoaderOptions options, int64_t count) {
  TokenLoader loader(tokens, config, std::move(options));
  std::vector<Batch> batches;
  for (int64_t i = 0; i < count; ++i) batches.push_back(loader.next());
  EXPECT_EQ(loader.bad_samples(), 0);
  return batches;
}

TEST(TokenLoader, FollowsTheOrderAndTheCaptionsOfThePictures) {
  const Shards shards;
  const DataConfig config{.caption = CaptionChoice::kDraw, .num_streams = 2};
  const auto batches = read(shards.tokens, config, {.batch_size = 2, .seed = 9, .start_position = 4}, 6);
  const SampleOrder order(5, 9, 2, true);
  for (size_t b = 0; b < batches.size(); ++b) {
    ASSERT_EQ(batches[b].codes.sizes(), at::IntArrayRef({2, 4}));
    EXPECT_FALSE(batches[b].images.defined());
    EXPECT_FALSE(batches[b].caption_ids.defined());
    for (int64_t i = 0; i < 2; ++i) {
      const auto row = static_cast<size_t>(i);
      const int64_t position = 4 + 2 * static_cast<int64_t>(b) + i, sample = order.index_at(position);
      EXPECT_EQ(batches[b].positions[row], position);
      EXPECT_EQ(batches[b].indices[row], sample);
      EXPECT_EQ(batches[b].keys[row], shards.tokens.key(sample));
      EXPECT_EQ(batches[b].captions[row],
                choose_caption(shards.tokens.captions(sample), CaptionChoice::kDraw, 9, position));
      const int64_t crop = choose_crop(9, position / 5, shards.tokens.index(sample), 3);
      EXPECT_TRUE(batches[b].codes[i].equal(shards.tokens.codes(sample, crop).flatten()));
    }
  }
}

TEST(TokenLoader, AsManyEpochsAsCropsShowEachOnce) {
  const Shards shards;
  std::map<int64_t, std::set<std::vector<int64_t>>> seen;
  for (const Batch& batch : read(shards.tokens, {}, {.batch_size = 5}, 3)) {
    for (int64_t i = 0; i < 5; ++i) {
      const Tensor codes = batch.codes[i].contiguous();
      seen[batch.indices[static_cast<size_t>(i)]].emplace(codes.data_ptr<int64_t>(), codes.data_ptr<int64_t>() + 4);
    }
  }
  EXPECT_EQ(seen.size(), 5U);
  for (const auto& [sample, codes] : seen) EXPECT_EQ(codes.size(), 3U) << sample;
}

TEST(TokenLoader, NeitherThreadsNorRanksNorTheStartChangeTheBatches) {
  const Shards shards;
  const LoaderOptions one{.batch_size = 4, .seed = 3};
  const auto expected = read(shards.tokens, {.loader_threads = 1}, one, 4);
  auto later = one;
  later.start_position = 8;
  const auto resumed = read(shards.tokens, {.loader_threads = 4}, later, 2);
  for (size_t i = 0; i < 2; ++i) {
    EXPECT_EQ(resumed[i].keys, expected[i + 2].keys);
    EXPECT_TRUE(resumed[i].codes.equal(expected[i + 2].codes));
  }
  auto second = one;
  second.rank = 1;
  second.world_size = 2;
  const auto half = read(shards.tokens, {.loader_threads = 3}, second, 4);
  for (size_t i = 0; i < 4; ++i) EXPECT_TRUE(half[i].codes.equal(expected[i].codes.slice(0, 2)));
}

TEST(TokenLoader, EncodesCaptionsOfVisits) {
  const Shards shards;
  LoaderOptions options{.batch_size = 3, .seed = 1, .start_position = 7};
  options.encode_caption = [](std::string_view caption, const SampleVisit& visit) {
    return text::EncodedCaption{
        .ids = {static_cast<int64_t>(caption.size()), visit.position, visit.sample, visit.epoch},
        .truncated = visit.position > 7};
  };
  const auto batch = read(shards.tokens, {.caption = CaptionChoice::kFirst}, options, 1).front();
  for (int64_t i = 0; i < 3; ++i) {
    EXPECT_EQ(batch.caption_ids[i][0].item<int64_t>(),
              static_cast<int64_t>(batch.captions[static_cast<size_t>(i)].size()));
    EXPECT_EQ(batch.caption_ids[i][1].item<int64_t>(), 7 + i);
    EXPECT_EQ(batch.caption_ids[i][2].item<int64_t>(), shards.tokens.index(batch.indices[static_cast<size_t>(i)]));
    EXPECT_EQ(batch.caption_ids[i][3].item<int64_t>(), (7 + i) / 5) << "the epoch";
  }
  EXPECT_EQ(batch.num_truncated, 2);
}

TEST(TokenLoader, ARangeIsTheFirstCropWithTheFirstCaption) {
  const Shards shards;
  const Batch batch = load_token_range(shards.tokens, 3, 10);
  EXPECT_THAT(batch.keys, ElementsAre(testing::token_key(3), testing::token_key(5)));
  EXPECT_EQ(batch.captions[1], testing::token_captions(5).front());
  EXPECT_TRUE(batch.codes[1].equal(shards.tokens.codes(4, 0).flatten()));
  EXPECT_THROW(load_token_range(shards.tokens, 5, 1), c10::ValueError);
}

TEST(TokenLoader, ABatchThatDoesNotSplitIsRefused) {
  const Shards shards;
  EXPECT_THAT(
      testing::message_of<ConfigError>([&] { TokenLoader(shards.tokens, {}, {.batch_size = 3, .world_size = 2}); }),
      HasSubstr("multiple of the number of processes (2)"));
}

}  // namespace
}  // namespace dalle::data

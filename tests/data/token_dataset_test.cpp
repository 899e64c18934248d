#include "dalle/data/token_dataset.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <thread>

#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/storage/manifest.h"
#include "support/temp_directory.h"
#include "support/thrown_message.h"
#include "support/token_shards.h"

namespace dalle::data {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::message_of;
using testing::TempDirectory;
using testing::token_info;

const std::vector<int64_t> kIndices{0, 1, 2, 3, 5};  // number 4 was no picture

void expect_sample(const TokenDataset& tokens, int64_t sample, int64_t index) {
  EXPECT_EQ(tokens.index(sample), index);
  EXPECT_EQ(tokens.key(sample), testing::token_key(index));
  EXPECT_EQ(tokens.captions(sample), testing::token_captions(index));
  for (int64_t crop = 0; crop < 3; ++crop) {
    const Tensor codes = tokens.codes(sample, crop);
    EXPECT_EQ(codes.sizes(), at::IntArrayRef({2, 2}));
    EXPECT_TRUE(codes.flatten().equal(at::tensor(testing::token_codes(index, crop), at::kLong))) << sample;
  }
}

TEST(TokenDataset, ReadsAllShardsAsOneList) {
  const TempDirectory scratch("tokens");
  testing::write_token_set(scratch / "run/shards", token_info(6));
  for (const char* given : {"run", "run/shards"}) {
    const TokenDataset tokens({scratch / given});
    ASSERT_EQ(tokens.size(), 5);
    EXPECT_EQ(tokens.info(), token_info(6));
    for (const int64_t sample : {4, 0, 2, 3, 1}) expect_sample(tokens, sample, kIndices[static_cast<size_t>(sample)]);
    EXPECT_THAT(tokens.place(4), AllOf(HasSubstr("tokens-000001.shard"), HasSubstr("folder/key-5")));
    EXPECT_THROW(tokens.key(5), c10::ValueError);
    EXPECT_NO_THROW(tokens.verify());
  }
}

TEST(TokenDataset, SeveralSetsAreReadInOrder) {
  const TempDirectory scratch("token-sets");
  auto other = token_info(6);
  other.seed = 8;
  other.settings["augmentation"] = "none";
  testing::write_token_set(scratch / "a", token_info(6));
  testing::write_token_set(scratch / "b", other);
  const TokenDataset tokens({scratch / "b", scratch / "a"});
  ASSERT_EQ(tokens.size(), 10);
  for (int64_t sample = 0; sample < 10; ++sample)
    expect_sample(tokens, sample, kIndices[static_cast<size_t>(sample % 5)]);
  EXPECT_EQ(tokens.info().seed, 8);
}

TEST(TokenDataset, MayBeReadByManyThreads) {
  const TempDirectory scratch("token-threads");
  testing::write_token_set(scratch / "a", token_info(6));
  const TokenDataset tokens({scratch / "a"});
  std::vector<std::thread> threads;
  for (int t = 0; t < 4; ++t) {
    threads.emplace_back([&] {
      for (int64_t i = 0; i < 40; ++i) expect_sample(tokens, i % 5, kIndices[static_cast<size_t>(i % 5)]);
    });
  }
  for (auto& thread : threads) thread.join();
}

TEST(TokenDataset, SetsOfOtherTokensDoNotFit) {
  const TempDirectory scratch("token-others");
  testing::write_token_set(scratch / "a", token_info(6));
  int64_t count = 0;
  const auto refused = [&](const storage::TokenShardInfo& info) {
    const auto folder = scratch / str("other-", count++);
    testing::write_token_set(folder, info);
    EXPECT_NO_THROW(TokenDataset({folder}));
    return message_of<ConfigError>([&] { TokenDataset({scratch / "a", folder}); });
  };
  auto info = token_info(6);
  info.dvae = std::string(32, 'f');
  EXPECT_THAT(refused(info), AllOf(HasSubstr("other-0"), HasSubstr(info.dvae), HasSubstr(token_info(6).dvae)));
  EXPECT_THAT(refused(token_info(6, 2000)), HasSubstr("vocab_size is 2000 where 1000 was expected"));
  info = token_info(6);
  info.picture_size = 32;
  EXPECT_THAT(refused(info), HasSubstr("picture_size"));
}

TEST(TokenDataset, AShardThatIsNotTheManifestsIsNoticed) {
  const TempDirectory scratch("token-mixed");
  auto other = token_info(6);
  other.seed = 8;
  testing::write_token_set(scratch / "a", token_info(6));
  testing::write_token_set(scratch / "b", other);
  fs::copy_file(scratch / "b" / "tokens-000001.shard", scratch / "a" / "tokens-000001.shard",
                fs::copy_options::overwrite_existing);
  EXPECT_THAT(message_of<CheckpointError>([&] { TokenDataset({scratch / "a"}); }),
              AllOf(HasSubstr("tokens-000001.shard"), HasSubstr("another run")));
  fs::remove(scratch / "a" / "tokens-000001.shard");
  EXPECT_THROW(TokenDataset({scratch / "a"}), FileError);
  fs::remove(scratch / "b" / storage::kManifestName);
  EXPECT_THAT(message_of<ConfigError>([&] { TokenDataset({scratch / "b"}); }), HasSubstr("--resume"));
  EXPECT_THROW(TokenDataset({}), ConfigError);
}

TEST(TokenDataset, DamageIsNoticedByVerify) {
  const TempDirectory scratch("token-damage");
  testing::write_token_set(scratch / "a", token_info(6));
  std::string bytes = read_file(scratch / "a" / "tokens-000000.shard");
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  write_file(scratch / "a" / "tokens-000000.shard", bytes);
  const TokenDataset tokens({scratch / "a"});
  EXPECT_THAT(message_of<CheckpointError>([&] { tokens.verify(); }), HasSubstr("checksum"));
}

TEST(TokenDataset, NamesTheDvaeItBelongsTo) {
  const TempDirectory scratch("token-dvae");
  testing::write_token_set(scratch / "a", token_info(6));
  const TokenDataset tokens({scratch / "a"});
  EXPECT_NO_THROW(tokens.check_dvae(token_info(6).dvae, "runs/dvae"));
  EXPECT_THAT(message_of<ConfigError>([&] { tokens.check_dvae("abc", "runs/dvae"); }),
              AllOf(HasSubstr("runs/dvae: "), HasSubstr(token_info(6).dvae), HasSubstr("abc")));
}

// As many epochs as crops show every crop once; then they begin again in another order.
TEST(ChooseCrop, GoesThroughAllCrops) {
  for (const int64_t crops : {1, 2, 3, 4}) {
    std::set<std::vector<int64_t>> orders;
    for (int64_t sample = 0; sample < 200; ++sample) {
      for (int64_t round = 0; round < 2; ++round) {
        std::vector<int64_t> order;
        for (int64_t epoch = round * crops; epoch < (round + 1) * crops; ++epoch) {
          order.push_back(choose_crop(3, epoch, sample, crops));
        }
        EXPECT_EQ(std::set<int64_t>(order.begin(), order.end()).size(), static_cast<size_t>(crops));
        EXPECT_GE(*std::min_element(order.begin(), order.end()), 0);
        EXPECT_LT(*std::max_element(order.begin(), order.end()), crops);
        orders.insert(order);
      }
    }
    const int64_t permutations[] = {1, 1, 2, 6, 24};
    EXPECT_EQ(static_cast<int64_t>(orders.size()), permutations[crops]) << "400 draws meet every order of " << crops;
  }
}

TEST(ChooseCrop, IsAFunctionOfSeedEpochAndSample) {
  int64_t same_seed = 0, same_sample = 0;
  for (int64_t sample = 0; sample < 400; ++sample) {
    const int64_t crop = choose_crop(3, 0, sample, 4);
    EXPECT_EQ(crop, choose_crop(3, 0, sample, 4));
    same_seed += crop == choose_crop(4, 0, sample, 4);
    same_sample += crop == choose_crop(3, 0, sample + 1, 4);
  }
  EXPECT_NEAR(same_seed, 100, 45) << "one in four by chance; 45 are five standard deviations";
  EXPECT_NEAR(same_sample, 100, 45);
  EXPECT_THROW(choose_crop(3, -1, 0, 4), c10::ValueError);
}

}  // namespace
}  // namespace dalle::data

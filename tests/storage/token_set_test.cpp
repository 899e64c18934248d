#include "dalle/storage/token_set.h"

#include <gmock/gmock.h>

#include "dalle/storage/manifest.h"
#include "storage/scratch.h"
#include "support/token_shards.h"

namespace dalle::storage {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

TEST(TokenSet, TheManifestSaysWhatTheShardsHold) {
  const Scratch scratch("token-set");
  testing::write_token_set(scratch / "run/shards", testing::token_info(6));
  const auto set = read_token_set(scratch / "run/shards");
  EXPECT_EQ(set.dvae, testing::token_info(6).dvae);
  EXPECT_EQ(set.dvae_path, "runs/dvae");
  EXPECT_EQ(set.dvae_step, 12);
  EXPECT_EQ(set.dataset_size, 6);
  EXPECT_EQ(set.num_samples, 5);
  EXPECT_EQ(set.num_captions, 1 + 2 + 3 + 4 + 6);
  EXPECT_EQ(set.num_crops, 3);
  ASSERT_EQ(set.shards.size(), 2U);
  for (const auto& entry : set.shards) {
    const TokenShardReader shard(scratch / "run/shards" / entry.name);
    EXPECT_EQ(entry.bytes, fs::file_size(shard.path()));
    EXPECT_EQ(entry.num_samples, shard.size());
    EXPECT_EQ(entry.checksum, shard.header().checksum);
  }
  EXPECT_EQ(resolve_token_set(scratch / "run"), scratch / "run/shards");
  EXPECT_EQ(resolve_token_set(scratch / "run/shards"), scratch / "run/shards");
}

TEST(TokenSet, AnUnfinishedFolderIsRefused) {
  const Scratch scratch("token-unfinished");
  testing::token_writer(testing::token_info(6), 0, 4).write(scratch / token_shard_name(0));
  EXPECT_THAT(message_of<ConfigError>([&] { resolve_token_set(scratch.path()); }), HasSubstr("--resume"));
  EXPECT_THAT(message_of<ConfigError>([&] { read_token_set(scratch.path()); }), HasSubstr("--resume"));
  EXPECT_THAT(message_of<ConfigError>([&] { resolve_token_set(scratch / "none"); }), HasSubstr("no such folder"));
}

TEST(TokenSet, ShardsThatDoNotFollowEachOtherAreNoSet) {
  const Scratch scratch("token-gap");
  const auto info = testing::token_info(6);
  const auto first = testing::token_writer(info, 0, 4).write(scratch / "a");
  const auto last = testing::token_writer(info, 5, 6).write(scratch / "b");
  EXPECT_THROW(describe_token_set({first, last}, "", 0), c10::ValueError);
  EXPECT_THROW(describe_token_set({first}, "", 0), c10::ValueError) << "two samples belong to no shard";
  EXPECT_THROW(describe_token_set({}, "", 0), c10::ValueError);
}

TEST(TokenSet, ADamagedManifestIsNotBelieved) {
  const Scratch scratch("token-manifest");
  testing::write_token_set(scratch.path(), testing::token_info(6));
  const std::string whole = read_file(scratch / kManifestName);
  const std::pair<std::string, std::string> replacements[] = {{"\"dalle-tokens\"", "\"dalle-checkpoint\""},
                                                              {"\"format_version\": 1", "\"format_version\": 3"},
                                                              {"tokens-000001.shard", "../000001.shard"},
                                                              {"\"num_samples\": 5", "\"num_samples\": 6"},
                                                              {"\"bytes\": ", "\"bytes\": -"},
                                                              {"\"shards\": [", "\"shards\": 3, \"others\": ["},
                                                              {"\"identity\"", "\"name\""}};
  for (const auto& [from, to] : replacements) {
    std::string text = whole;
    ASSERT_NE(text.find(from), std::string::npos) << from;
    overwrite(scratch / kManifestName, text.replace(text.find(from), from.size(), to));
    EXPECT_THROW(read_token_set(scratch.path()), CheckpointError) << to;
  }
  for (size_t size = 0; size + 1 < whole.size(); ++size) {
    overwrite(scratch / kManifestName, whole.substr(0, size));
    EXPECT_THROW(read_token_set(scratch.path()), CheckpointError) << size;
  }
}

}  // namespace
}  // namespace dalle::storage

// encode-images on a tiny untrained dVAE and the shipped emoji.
#include "dalle/training/encode_job.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <thread>

#include "dalle/core/device.h"
#include "dalle/data/crop_loader.h"
#include "dalle/data/token_dataset.h"
#include "dalle/models/load.h"
#include "dalle/training/task_support.h"
#include "support/tar_files.h"
#include "training/tiny_runs.h"

namespace dalle::training {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

EncodeConfig small_config(int64_t num_samples = 20) {
  EncodeConfig config;
  config.dvae = parts().dvae;
  config.data.pictures.sources = {emoji("train.tar", num_samples)};
  config.crops_per_image = 3;
  config.seed = 11;
  config.precision = Precision::kF32;
  config.batch_size = 8;
  config.samples_per_shard = 6;
  return config;
}

cli::Invocation call_for(const fs::path& root, bool resume = false) {
  set_console_level(LogLevel::kError);
  return {.command = "encode-images",
          .config_name = "tiny",
          .run_dir = root,
          .resume = resume,
          .resolved_config = "a: 1\n"};
}

int encode(const EncodeConfig& config, const fs::path& root, bool resume = false, int threads = 1) {
  auto call = call_for(root, resume);
  call.threads = threads;
  const int code = run_encode(config, call);
  set_log_file("");
  return code;
}

std::string log_of(const fs::path& root) { return read_file(root / "log.txt"); }

/// The shards' bytes, which say everything.
std::vector<std::string> shards_of(const fs::path& root) {
  std::vector<std::string> contents;
  for (int64_t number = 0; fs::exists(root / "shards" / storage::token_shard_name(number)); ++number) {
    contents.push_back(read_file(root / "shards" / storage::token_shard_name(number)));
  }
  return contents;
}

/// Names, each with the time it was written, of the files that a resumed run must not touch.
std::map<fs::path, fs::file_time_type> times_of(const fs::path& folder) {
  std::map<fs::path, fs::file_time_type> times;
  for (const auto& entry : fs::directory_iterator(folder)) times[entry.path().filename()] = entry.last_write_time();
  return times;
}

// The reference: each picture by itself, decoded, cropped, encoded.
TEST(EncodeJob, TheTokensAreTheArgmaxCodesOfTheCrops) {
  const testing::TempDirectory scratch("encode-reference");
  const auto config = small_config();
  ASSERT_EQ(encode(config, scratch / "run"), cli::kDone);
  const data::TokenDataset tokens({scratch / "run"});
  const data::Dataset dataset(config.data.pictures.sources);
  const auto dvae = models::load_dvae(config.dvae, {});
  ASSERT_EQ(tokens.size(), 20);
  EXPECT_EQ(tokens.info().dvae, dvae.identity);
  EXPECT_EQ(tokens.info().grid_size, 4);
  EXPECT_EQ(tokens.info().settings.at("augmentation"), "stage2");
  const data::TransformOptions transform{.image_size = 16, .augmentation = data::Augmentation::kStage2};
  int64_t num_codes = 0, num_equal = 0, crops_that_differ = 0;
  for (int64_t i = 0; i < 20; ++i) {
    const auto raw = dataset.read(i);
    EXPECT_EQ(tokens.key(i), raw.key);
    EXPECT_EQ(tokens.captions(i), raw.captions);
    EXPECT_EQ(tokens.index(i), i);
    const Tensor crops = data::make_crops(data::decode_picture(raw.picture), transform, 11, i, 3);
    for (int64_t crop = 0; crop < 3; ++crop) {
      const Tensor expected = dvae.model->encode(to_unit_range(crops[crop].unsqueeze(0), at::kCPU))[0];
      const Tensor codes = tokens.codes(i, crop);
      num_codes += codes.numel();
      num_equal += codes.eq(expected).sum().item<int64_t>();
      crops_that_differ += !codes.equal(tokens.codes(i, (crop + 1) % 3));
    }
  }
  EXPECT_GE(num_equal, num_codes * 999 / 1000) << "other batches may round to the other side of a tie";
  EXPECT_GT(crops_that_differ, 20) << "the crops show different parts";
}

TEST(EncodeJob, BatchesAndThreadsDoNotChooseTheTokens) {
  const testing::TempDirectory scratch("encode-batches");
  auto config = small_config();
  ASSERT_EQ(encode(config, scratch / "one"), cli::kDone);
  const data::TokenDataset expected({scratch / "one"});
  for (const int64_t batch_size : {1, 5, 64}) {
    config.batch_size = batch_size;
    config.data.pictures.loader_threads = static_cast<int>(batch_size % 4) + 1;
    const auto root = scratch / str("batch-", batch_size);
    const int threads = batch_size == 64 ? 2 : 1;
    ASSERT_EQ(encode(config, root, false, threads), cli::kDone);
    const data::TokenDataset tokens({root});
    ASSERT_EQ(tokens.size(), expected.size());
    int64_t num_codes = 0, num_equal = 0;
    for (int64_t i = 0; i < tokens.size(); ++i) {
      EXPECT_EQ(tokens.key(i), expected.key(i));
      for (int64_t crop = 0; crop < 3; ++crop) {
        num_codes += 16;
        num_equal += tokens.codes(i, crop).eq(expected.codes(i, crop)).sum().item<int64_t>();
      }
    }
    EXPECT_GE(num_equal, num_codes * 999 / 1000) << batch_size;
  }
  set_num_threads(1);
}

TEST(EncodeJob, TheSameRunGivesTheSameBytes) {
  const testing::TempDirectory scratch("encode-bytes");
  auto config = small_config();
  ASSERT_EQ(encode(config, scratch / "a"), cli::kDone);
  config.data.pictures.loader_threads = 3;
  config.data.pictures.prefetch_batches = 1;
  ASSERT_EQ(encode(config, scratch / "b"), cli::kDone);
  EXPECT_EQ(shards_of(scratch / "a").size(), 4U) << "6 + 6 + 6 + 2";
  EXPECT_TRUE(shards_of(scratch / "a") == shards_of(scratch / "b"));
  EXPECT_EQ(read_file(scratch / "a" / "shards/MANIFEST.json"), read_file(scratch / "b" / "shards/MANIFEST.json"));
  EXPECT_FALSE(fs::exists(scratch / "a" / "checkpoints")) << "no folders of a training";
  config.seed = 12;
  ASSERT_EQ(encode(config, scratch / "c"), cli::kDone);
  EXPECT_FALSE(shards_of(scratch / "a")[0] == shards_of(scratch / "c")[0]);
}

TEST(EncodeJob, AResumedRunKeepsWholeShardsAndMakesTheOthers) {
  const testing::TempDirectory scratch("encode-resume");
  const auto config = small_config();
  ASSERT_EQ(encode(config, scratch / "straight"), cli::kDone);
  ASSERT_EQ(encode(config, scratch / "run"), cli::kDone);
  const fs::path shards = scratch / "run" / "shards";
  // As a killed run leaves it: no manifest, a shard that is not there, a half one under a temporary name.
  fs::remove(shards / "MANIFEST.json");
  fs::remove(shards / "tokens-000001.shard");
  write_file(shards / "tokens-000001.shard.tmp-1", "half");
  const auto before = times_of(shards);
  ASSERT_EQ(encode(config, scratch / "run", /*resume=*/true), cli::kDone);
  EXPECT_THAT(log_of(scratch / "run"), HasSubstr("3 of 4 shards are kept"));
  EXPECT_TRUE(shards_of(scratch / "run") == shards_of(scratch / "straight"));
  EXPECT_TRUE(fs::exists(shards / "MANIFEST.json"));
  EXPECT_FALSE(fs::exists(shards / "tokens-000001.shard.tmp-1"));
  for (const char* name : {"tokens-000000.shard", "tokens-000002.shard", "tokens-000003.shard"}) {
    EXPECT_EQ(times_of(shards).at(name), before.at(name)) << name;
  }
  // A finished run has nothing left to do.
  ASSERT_EQ(encode(config, scratch / "run", /*resume=*/true), cli::kDone);
  EXPECT_THAT(log_of(scratch / "run"), HasSubstr("4 of 4 shards are kept"));
}

TEST(EncodeJob, ADamagedShardIsMadeAgain) {
  const testing::TempDirectory scratch("encode-damage");
  const auto config = small_config();
  ASSERT_EQ(encode(config, scratch / "run"), cli::kDone);
  const auto whole = shards_of(scratch / "run");
  const fs::path path = scratch / "run" / "shards/tokens-000002.shard";
  for (const std::string& damaged :
       {whole[2].substr(0, 700), whole[2].substr(0, whole[2].size() - 1) + "!", std::string("x")}) {
    write_file(path, damaged);
    ASSERT_EQ(encode(config, scratch / "run", /*resume=*/true), cli::kDone);
    EXPECT_TRUE(shards_of(scratch / "run") == whole);
    EXPECT_THAT(log_of(scratch / "run"), HasSubstr("made again: "));
  }
}

TEST(EncodeJob, ASignalKeepsTheShardsSoFar) {
  const testing::TempDirectory scratch("encode-signal");
  auto config = small_config();
  config.batch_size = 3;  // a sample at a time
  ASSERT_EQ(encode(config, scratch / "straight"), cli::kDone);
  // The second shard appears while the third is made: then the signal comes.
  std::thread killer([&] {
    while (!fs::exists(scratch / "run" / "shards/tokens-000001.shard")) std::this_thread::yield();
    ::raise(SIGTERM);
  });
  const struct sigaction ignore = [] {
    struct sigaction action {};
    action.sa_handler = SIG_IGN;
    return action;
  }();
  struct sigaction former {};
  sigaction(SIGTERM, &ignore, &former);  // where it comes too late, this process lives on
  const int code = encode(config, scratch / "run");
  killer.join();
  sigaction(SIGTERM, &former, nullptr);
  EXPECT_TRUE(shards_of(scratch / "run").size() >= 2);
  if (code == cli::kStopped) {
    EXPECT_FALSE(fs::exists(scratch / "run" / "shards/MANIFEST.json"));
    EXPECT_THAT(log_of(scratch / "run"), AllOf(HasSubstr("stopped by a signal with"), HasSubstr("--resume=")));
  }
  ASSERT_EQ(encode(config, scratch / "run", /*resume=*/true), cli::kDone);
  EXPECT_TRUE(shards_of(scratch / "run") == shards_of(scratch / "straight"));
}

TEST(EncodeJob, AnotherDvaeOrDataSetIsNoResumption) {
  const testing::TempDirectory scratch("encode-other");
  const auto config = small_config();
  ASSERT_EQ(encode(config, scratch / "run"), cli::kDone);
  const auto refused = [&](const EncodeConfig& other) {
    const std::string message = message_of<ConfigError>([&] { encode(other, scratch / "run", /*resume=*/true); });
    set_log_file("");
    return message;
  };
  auto other = config;
  other.dvae = parts().other_dvae;
  EXPECT_THAT(refused(other), AllOf(HasSubstr("tokens-000000.shard"), HasSubstr("dvae is ")));
  EXPECT_THAT(refused(small_config(19)), HasSubstr("dataset_size is 20 where 19 was expected"));
  other = config;
  other.data.pictures.sources = {emoji("val.tar", 20)};
  EXPECT_THAT(refused(other), HasSubstr("other captions of sample 0"));
  other = config;
  other.data.pictures.horizontal_flip = true;
  EXPECT_THAT(refused(other), HasSubstr("horizontal_flip is 'false' where 'true' was expected"));
}

/// The emoji's shard with some of its pictures made useless.
fs::path spoiled_shard(const testing::TempDirectory& scratch, const std::vector<int64_t>& bad) {
  const data::Dataset dataset({emoji("train.tar", 30)});
  testing::TarFiles files;
  for (int64_t i = 0; i < dataset.size(); ++i) {
    const auto raw = dataset.read(i);
    const bool is_bad = std::find(bad.begin(), bad.end(), i) != bad.end();
    files.emplace_back(raw.key + ".png", is_bad ? "no picture" : raw.picture);
    files.emplace_back(raw.key + ".txt", raw.captions[0]);
  }
  write_file(scratch / "spoiled.tar", testing::make_tar(files));
  return scratch / "spoiled.tar";
}

TEST(EncodeJob, BadPicturesAreLeftOutAndCounted) {
  const testing::TempDirectory scratch("encode-bad");
  auto config = small_config();
  config.data.pictures.sources = {{spoiled_shard(scratch, {0, 7, 8, 15, 22, 28}), 0}};
  config.data.pictures.max_bad_share = 0.3;
  ASSERT_EQ(encode(config, scratch / "run"), cli::kDone);
  const data::TokenDataset tokens({scratch / "run"});
  ASSERT_EQ(tokens.size(), 24);
  EXPECT_EQ(tokens.index(0), 1);
  EXPECT_EQ(tokens.index(6), 9);
  EXPECT_EQ(tokens.index(23), 29);
  EXPECT_THAT(log_of(scratch / "run"),
              AllOf(HasSubstr("unusable picture: "), HasSubstr("6 unusable pictures left out")));
  // The count goes on where a resumed run goes on.
  fs::remove(scratch / "run" / "shards/tokens-000004.shard");
  config.data.pictures.max_bad_share = 0.05;
  EXPECT_THAT(message_of<DataError>([&] { encode(config, scratch / "run", /*resume=*/true); }),
              AllOf(HasSubstr("at most 5 % unusable"), HasSubstr("6 of ")));
  set_log_file("");
}

TEST(EncodeJob, TooManyBadPicturesEndTheRun) {
  const testing::TempDirectory scratch("encode-all-bad");
  std::vector<int64_t> all;
  for (int64_t i = 0; i < 30; ++i) all.push_back(i);
  auto config = small_config();
  config.data.pictures.sources = {{spoiled_shard(scratch, all), 0}};
  EXPECT_THROW(encode(config, scratch / "a"), DataError);
  config.data.pictures.max_bad_share = 1;
  EXPECT_THAT(message_of<DataError>([&] { encode(config, scratch / "b"); }), HasSubstr("none of 30"));
  set_log_file("");
  EXPECT_FALSE(fs::exists(scratch / "b" / "shards/MANIFEST.json"));
}

TEST(EncodeJob, KeysThatDoNotFitAreRefused) {
  const auto load = [](const std::string& yaml) {
    return message_of<ConfigError>([&] { config::load_config<EncodeConfig>(config::parse_yaml(yaml, "my.yaml")); });
  };
  const std::string good = "dvae: d\ndata:\n  sources: [{path: a.tar}]\n";
  EXPECT_THAT(load("data:\n  sources: [{path: a.tar}]\n"), HasSubstr("train one with train-dvae"));
  EXPECT_THAT(load("dvae: d\n"), HasSubstr("at least one entry in sources"));
  EXPECT_THAT(load(good + "  augmentation: none\n"), HasSubstr("every crop is the same"));
  EXPECT_THAT(load(good + "  caption: first\n"), HasSubstr("unknown key 'data.caption'"));
  EXPECT_THAT(load(good + "crops_per_image: 0\n"), HasSubstr("crops_per_image"));
  const auto config = config::load_config<EncodeConfig>(
      config::parse_yaml(good + "  augmentation: none\n  horizontal_flip: true\n", "my.yaml"));
  EXPECT_EQ(config.crops_per_image, 2) << "flips make crops differ";
}

TEST(EncodeJob, RefusesWithoutLeavingAnything) {
  const testing::TempDirectory scratch("encode-refused");
  auto config = small_config();
  config.dvae = scratch / "nowhere";
  EXPECT_THROW(encode(config, scratch / "run"), ConfigError);
  config = small_config();
  config.data.pictures.sources[0].path = scratch / "nowhere.tar";
  EXPECT_THROW(encode(config, scratch / "run"), ConfigError);
  EXPECT_FALSE(fs::exists(scratch / "run"));
  write_file(scratch / "used.txt", "x");
  EXPECT_THROW(encode(small_config(), scratch.path()), ConfigError);
  EXPECT_FALSE(fs::exists(scratch / "shards"));
}

TEST(EncodeJob, CheckSaysWhatAPictureCosts) {
  const testing::TempDirectory scratch("encode-check");
  ::testing::internal::CaptureStdout();
  check_encode(small_config(), call_for(scratch / "run"));
  const std::string said = ::testing::internal::GetCapturedStdout();
  EXPECT_THAT(said, AllOf(HasSubstr("the config is valid"),
                          HasSubstr("3 crops of 16x16 pixels, 16 tokens each of 16 codes: 96 bytes"),
                          HasSubstr("a million pictures: 96.0MB")));
  auto config = small_config();
  config.dvae = scratch / "later";
  ::testing::internal::CaptureStdout();
  check_encode(config, call_for(scratch / "run"));
  EXPECT_THAT(::testing::internal::GetCapturedStdout(), HasSubstr("the config is valid"));
  EXPECT_TRUE(fs::is_empty(scratch.path()));
}

}  // namespace
}  // namespace dalle::training

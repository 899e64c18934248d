// encode-images as a process: flags, exit codes, stopping and going on.
#include "dalle/core/error.h"
#include "dalle/data/token_dataset.h"
#include "integration/tiny_pipeline.h"

namespace dalle::integration {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

std::string encode_yaml(const std::string& extra = "") {
  return str("dvae: dvae\ndata:\n  sources:\n    - path: ", emoji("train.tar"),
             "\n      max_samples: 400\ncrops_per_image: 4\nprecision: f32\nbatch_size: 8\nsamples_per_shard: 20\n",
             extra);
}

/// A workplace with a dVAE, made once.
const Workplace& workplace() {
  static const Workplace place("encode-images");
  static const bool trained = (place.train_well("dvae", dvae_yaml(3), "dvae"), true);
  (void)trained;
  return place;
}

std::vector<std::string> arguments_for(const std::string& run, std::vector<std::string> more = {}) {
  std::vector<std::string> arguments{workplace().file("encode.yaml", encode_yaml()), "--run-dir", workplace().at(run),
                                     "--threads", "1"};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

/// Bytes of all shards and the manifest, by name.
std::map<std::string, std::string> shards_of(const std::string& run) {
  std::map<std::string, std::string> contents;
  for (const auto& entry : fs::directory_iterator(workplace() / run / "shards")) {
    contents[entry.path().filename().string()] = read_file(entry.path());
  }
  return contents;
}

TEST(EncodeImages, WritesWhatADatasetReads) {
  const auto outcome = run_well("encode-images", arguments_for("whole"));
  EXPECT_THAT(outcome.err, AllOf(HasSubstr("encode 400/400 100%"), HasSubstr("images/s"),
                                 HasSubstr("400 samples with "), HasSubstr(" in 20 shards")));
  const data::TokenDataset tokens({workplace() / "whole"});
  EXPECT_EQ(tokens.size(), 400);
  EXPECT_EQ(tokens.info().num_crops, 4);
  EXPECT_NO_THROW(tokens.verify());
  EXPECT_EQ(storage::load_latest_good(workplace() / "dvae").checkpoint.identities.at("ema"), tokens.info().dvae)
      << "the averaged weights encode";
  const auto again = run("encode-images", arguments_for("whole"));
  EXPECT_EQ(again.exit_code, 2);
  EXPECT_THAT(again.err, HasSubstr("continue that run with --resume"));
}

// Stopped by a signal, then killed in the middle of a shard, then let run: the same bytes as without a break. The run is
// long enough that it does not end before it is stopped.
TEST(EncodeImages, GoesOnWhereItStopped) {
  const std::vector<std::string> longer{"--set", "data.sources[0].max_samples=1200", "--set", "crops_per_image=8"};
  run_well("encode-images", arguments_for("straight", longer));
  int64_t kept = 0;
  for (const int signal : {SIGTERM, SIGKILL}) {
    const auto arguments = signal == SIGTERM
                               ? arguments_for("stopped", longer)
                               : std::vector<std::string>{"--resume=" + workplace().at("stopped"), "--threads", "1"};
    Process process("encode-images", arguments);
    const fs::path next = workplace() / "stopped/shards" / storage::token_shard_name(kept + 2);
    ASSERT_TRUE(wait_for("a shard", [&] { return fs::exists(next) || process.has_ended(); }));
    process.kill(signal);
    const auto stopped = process.wait();
    if (signal == SIGTERM) {
      ASSERT_EQ(stopped.exit_code, 3) << stopped.err;
      EXPECT_THAT(stopped.err, AllOf(HasSubstr("stopped by a signal with"), HasSubstr("--resume=")));
    } else {
      ASSERT_EQ(stopped.signal, SIGKILL) << stopped.err;
    }
    EXPECT_FALSE(fs::exists(workplace() / "stopped/shards/MANIFEST.json"));
    EXPECT_THROW(data::TokenDataset({workplace() / "stopped"}), ConfigError) << "an unfinished set is no data set";
    while (fs::exists(workplace() / "stopped/shards" / storage::token_shard_name(kept))) ++kept;
  }
  const auto resumed =
      run_well("encode-images", {"--run-dir", workplace().at("stopped"), "--resume", "--threads", "1"});
  EXPECT_THAT(resumed.err, HasSubstr(str(kept, " of 60 shards are kept")));
  EXPECT_TRUE(shards_of("stopped") == shards_of("straight"));
}

TEST(EncodeImages, AFullDiskLeavesWholeShards) {
  const auto full = run("encode-images", arguments_for("full"), {.max_file_bytes = 3000});
  EXPECT_EQ(full.exit_code, 1) << full.err;
  EXPECT_THAT(full.err, HasSubstr("tokens-000000.shard"));
  EXPECT_TRUE(fs::is_empty(workplace() / "full/shards"));
  run_well("encode-images", {"--run-dir", workplace().at("full"), "--resume", "--threads", "1"});
  EXPECT_EQ(data::TokenDataset({workplace() / "full"}).size(), 400);
}

TEST(EncodeImages, WrongUsageWritesNothing) {
  const auto refused = [&](const std::vector<std::string>& more, const std::string& said) {
    const auto outcome = run("encode-images", arguments_for("refused", more));
    EXPECT_EQ(outcome.exit_code, 2) << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr(said));
    EXPECT_FALSE(fs::exists(workplace() / "refused"));
  };
  refused({"--set", "dvae=" + workplace().at("nowhere")}, "nowhere");
  refused({"--set", "data.sources[0].path=" + workplace().at("nowhere.tar")}, "nowhere.tar");
  refused({"--set", "crops_per_image=0"}, "crops_per_image");
  refused({"--set", "crops_per_imag=1"}, "did you mean 'crops_per_image'?");
  refused({"--set", "data.augmentation=none"}, "every crop is the same");
  refused({"--set", "data.caption=first"}, "unknown key 'data.caption'");
  EXPECT_EQ(run("encode-images", {}).exit_code, 2);
  const auto check = run_well("encode-images", arguments_for("refused", {"--check"}));
  EXPECT_THAT(check.out, AllOf(HasSubstr("the config is valid"), HasSubstr("4 crops of 16x16 pixels")));
  EXPECT_FALSE(fs::exists(workplace() / "refused"));
}

TEST(EncodeImages, AResumedRunKeepsItsConfig) {
  run_well("encode-images", arguments_for("config", {"--set", "data.sources[0].max_samples=20"}));
  const auto changed = run("encode-images", {"--run-dir", workplace().at("config"), "--resume", "--set", "seed=5"});
  EXPECT_EQ(changed.exit_code, 2);
  EXPECT_THAT(changed.err, HasSubstr("start a new run"));
  run_well("encode-images", {"--run-dir", workplace().at("config"), "--resume", "--set", "batch_size=3", "--set",
                             "data.loader_threads=2", "--threads", "1"});
}

}  // namespace
}  // namespace dalle::integration

// A run that is stopped anywhere and resumed is, bit for bit, the run that was never stopped.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>
#include <stdexcept>
#include <utility>

#include "training/tiny_runs.h"

namespace dalle::training {
namespace {

using ::testing::HasSubstr;

void expect_same_run(const fs::path& actual, const fs::path& expected) {
  const storage::Checkpoint a = latest(actual), b = latest(expected);
  EXPECT_EQ(a.step, b.step);
  EXPECT_EQ(a.samples_seen, b.samples_seen);
  EXPECT_EQ(a.model_config_yaml, b.model_config_yaml);
  EXPECT_EQ(a.tokenizer, b.tokenizer);
  EXPECT_EQ(a.identities, b.identities);
  EXPECT_EQ(a.scalars, b.scalars);
  expect_same_tensors(a.model, b.model);
  expect_same_tensors(a.ema, b.ema);
  expect_same_tensors(a.optimizer, b.optimizer);
  // nlohmann::json writes a double so that it reads back the same: equal text is equal bits.
  const auto lines = metrics_of(actual), wanted = metrics_of(expected);
  ASSERT_EQ(lines.size(), wanted.size());
  for (size_t i = 0; i < lines.size(); ++i) EXPECT_EQ(lines[i].dump(), wanted[i].dump());
}

/// Trains, or resumes, until SIGTERM comes in the training step that follows `stop - 1` updates.
template <class Config>
bool train_until_signal(const Config& config, const fs::path& root, bool resume, int64_t stop) {
  TaskOf<Config> task(config, at::kCPU);
  WatchedTask watched(task);
  bool raised = false;  // the second signal would end the process, and a step may have several micro-batches
  watched.before_step = [&](int64_t step) {
    if (step == stop - 1 && !std::exchange(raised, true)) std::raise(SIGTERM);
  };
  return train_task(watched, config, root, resume);
}

struct Crash : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// Leaves as a crash does: between checkpoints, with metrics of steps that no checkpoint knows.
template <class Config>
void train_until_crash(const Config& config, const fs::path& root, int64_t step_of_crash) {
  TaskOf<Config> task(config, at::kCPU);
  WatchedTask watched(task);
  watched.before_step = [&](int64_t step) {
    if (step == step_of_crash) throw Crash("lights out");
  };
  EXPECT_THROW(train_task(watched, config, root), Crash);
}

template <class Config>
void expect_resume_is_bitwise(Config config, const std::string& name) {
  config.trainer.validation_interval_steps = 5;
  const testing::TempDirectory scratch("resume-" + name);
  ASSERT_TRUE(train(config, scratch / "straight"));
  ASSERT_EQ(latest(scratch / "straight").step, 10);
  ASSERT_FALSE(latest(scratch / "straight").optimizer.empty());

  const fs::path stopped = scratch / "stopped";
  bool resume = false;
  for (const int64_t stop : {1, 2, 5, 9}) {
    EXPECT_FALSE(train_until_signal(config, stopped, resume, stop));
    EXPECT_EQ(latest(stopped).step, stop);
    resume = true;
  }
  EXPECT_TRUE(train(config, stopped, /*resume=*/true));
  expect_same_run(stopped, scratch / "straight");

  config.trainer.checkpoint_interval_steps = 3;
  train_until_crash(config, scratch / "crashed", 8);
  EXPECT_EQ(latest(scratch / "crashed").step, 6);
  EXPECT_EQ(metrics_of(scratch / "crashed", "train").size(), 8U);
  EXPECT_TRUE(train(config, scratch / "crashed", /*resume=*/true));
  expect_same_run(scratch / "crashed", scratch / "straight");
}

TEST(Resume, TheDvaeIsBitwiseTheSame) { expect_resume_is_bitwise(tiny_dvae(), "dvae"); }

// The codebook, its counts and the restarts of dead codes are part of the state, with micro-batches too.
TEST(Resume, AVectorQuantisedModelIsBitwiseTheSame) {
  expect_resume_is_bitwise(tiny_vq(), "vq");
  auto config = tiny_vq();
  config.trainer.micro_batch_size = 2;
  expect_resume_is_bitwise(config, "vq-micro");
}

TEST(Resume, ClipIsBitwiseTheSame) { expect_resume_is_bitwise(tiny_clip(), "clip"); }

TEST(Resume, ThePriorIsBitwiseTheSame) { expect_resume_is_bitwise(tiny_prior(), "prior"); }

// The scales are part of the state.
TEST(Resume, APriorInFp16IsBitwiseTheSame) {
  auto config = tiny_prior();
  config.precision = Precision::kFp16;
  config.trainer.micro_batch_size = 2;
  config.trainer.exponent_histogram_interval_steps = 4;
  expect_resume_is_bitwise(config, "fp16");
}

TEST(Resume, MicroBatchesAreNoExcuse) {
  auto config = tiny_prior();
  config.trainer.micro_batch_size = 2;
  config.trainer.ema_interval_steps = 4;
  config.data.loader_threads = 2;
  expect_resume_is_bitwise(config, "micro");
}

TEST(Resume, TheOneBatchOfAnOverfittingRunStaysTheSame) {
  auto config = tiny_dvae();
  config.trainer.overfit_one_batch = true;
  expect_resume_is_bitwise(config, "overfit");
}

TEST(Resume, AStopBeforeTheFirstStepIsAResultToo) {
  const testing::TempDirectory scratch("resume-zero");
  auto config = tiny_dvae(0);
  ASSERT_TRUE(train(config, scratch / "run"));
  EXPECT_EQ(latest(scratch / "run").step, 0);
  config.trainer.num_steps = 3;
  EXPECT_TRUE(train(config, scratch / "run", /*resume=*/true));
  ASSERT_TRUE(train(config, scratch / "straight"));
  expect_same_tensors(latest(scratch / "run").model, latest(scratch / "straight").model);
}

TEST(Resume, ARunThatCrashedBeforeItsFirstCheckpointStartsAgain) {
  const testing::TempDirectory scratch("resume-early");
  auto config = tiny_dvae(4);
  config.trainer.init_from = parts().dvae;
  ASSERT_TRUE(train(config, scratch / "straight"));
  train_until_crash(config, scratch / "run", 2);
  ASSERT_TRUE(storage::list_checkpoints(scratch / "run").empty());
  EXPECT_TRUE(train(config, scratch / "run", /*resume=*/true));
  expect_same_run(scratch / "run", scratch / "straight");
}

TEST(Resume, AFinishedRunIsLeftAsItIs) {
  const testing::TempDirectory scratch("resume-finished");
  ASSERT_TRUE(train(tiny_dvae(2), scratch / "run"));
  const auto before = metrics_of(scratch / "run");
  EXPECT_TRUE(train(tiny_dvae(2), scratch / "run", /*resume=*/true));
  EXPECT_EQ(metrics_of(scratch / "run"), before);
  EXPECT_EQ(storage::list_checkpoints(scratch / "run"), std::vector<std::string>{"step-00000002"});
}

TEST(Resume, AnOlderCheckpointMayBeChosen) {
  const testing::TempDirectory scratch("resume-older");
  auto config = tiny_dvae(6);
  config.trainer.checkpoint_interval_steps = 2;
  ASSERT_TRUE(train(config, scratch / "run"));
  const auto expected = latest(scratch / "run");
  DvaeTask task(config, at::kCPU);
  const auto communicator = distributed::make_singleton();
  auto setup = setup_of(config, /*resume=*/true);
  setup.checkpoint = storage::checkpoint_path(scratch / "run", 2);
  Trainer trainer(std::move(setup), task, *communicator);
  RunDirectory run = RunDirectory::open(scratch / "run");
  EXPECT_TRUE(trainer.run(run));
  expect_same_tensors(latest(scratch / "run").model, expected.model);
  EXPECT_EQ(metrics_of(scratch / "run", "train").size(), 6U) << "steps 3 to 6 are logged once";
}

// Both identities are in the message, and the run is as it was.
template <class Config>
void expect_refused(const Config& config, Config changed, const std::string& owner) {
  const testing::TempDirectory scratch("resume-other-" + owner);
  ASSERT_TRUE(train(config, scratch / "run"));
  const auto before = read_file(scratch / "run/metrics.jsonl");
  const std::string old_identity = latest(scratch / "run").identities.at(owner);
  const std::string new_identity = TaskOf<Config>(changed, at::kCPU).identities().at(owner);
  ASSERT_NE(old_identity, new_identity);
  changed.trainer.num_steps += 1;
  const std::string message = message_of<ConfigError>([&] { train(changed, scratch / "run", /*resume=*/true); });
  EXPECT_THAT(message, HasSubstr(old_identity));
  EXPECT_THAT(message, HasSubstr(new_identity));
  EXPECT_THAT(message, HasSubstr(owner));
  EXPECT_EQ(read_file(scratch / "run/metrics.jsonl"), before);
}

TEST(Resume, AnotherDvaeIsRefused) {
  auto prior = tiny_prior(1);
  prior.dvae = parts().other_dvae;
  expect_refused(tiny_prior(1), prior, "dvae");
  auto clip = tiny_clip(1);
  clip.dvae = parts().other_dvae;
  expect_refused(tiny_clip(1), clip, "dvae");
}

TEST(Resume, AnotherTokenizerIsRefused) {
  auto prior = tiny_prior(1);
  prior.tokenizer = parts().other_tokenizer;
  expect_refused(tiny_prior(1), prior, "tokenizer");
  auto clip = tiny_clip(1);
  clip.tokenizer = parts().other_tokenizer;
  expect_refused(tiny_clip(1), clip, "tokenizer");
}

TEST(Resume, AnotherKindOfRunIsRefused) {
  const testing::TempDirectory scratch("resume-kind");
  ASSERT_TRUE(train(tiny_clip(1), scratch / "run"));
  const std::string message = message_of<ConfigError>([&] { train(tiny_prior(2), scratch / "run", /*resume=*/true); });
  EXPECT_THAT(message, HasSubstr("expected a checkpoint of a prior, got one of a clip"));
}

}  // namespace
}  // namespace dalle::training

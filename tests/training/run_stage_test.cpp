#include "dalle/training/run_stage.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>

#include "training/tiny_runs.h"

namespace dalle::training {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

const fs::path kPaper = fs::path(DALLE_SOURCE_DIR) / "configs/paper";

cli::Invocation call_for(const fs::path& root, bool resume = false) {
  return {.command = "train-it",
          .config_name = "tiny",
          .run_dir = root,
          .resume = resume,
          .device = "cpu",
          .resolved_config = config::emit_yaml(config::dump(tiny_dvae(2)))};
}

template <class Config>
std::string checked(void (*check)(const Config&, const cli::Invocation&), const Config& config) {
  set_console_level(LogLevel::kError);
  struct Capture {
    Capture() { ::testing::internal::CaptureStdout(); }
    ~Capture() {
      if (!is_read) ::testing::internal::GetCapturedStdout();
    }
    std::string read() {
      is_read = true;
      return ::testing::internal::GetCapturedStdout();
    }
    bool is_read = false;
  } capture;
  check(config, call_for(""));
  return capture.read();
}

TEST(RunStage, CheckReportsThePapersModelsWithoutTheirMemory) {
  EXPECT_THAT(checked(check_dvae, config::load_config_file<DvaeTraining>(kPaper / "dvae.yaml")),
              HasSubstr("97,616,006"));
  EXPECT_THAT(checked(check_prior, config::load_config_file<PriorTraining>(kPaper / "prior.yaml")),
              HasSubstr("12,292,840,960"));
  EXPECT_THAT(checked(check_clip, config::load_config_file<ClipTraining>(kPaper / "clip.yaml")),
              HasSubstr("parameters: 1"));
}

TEST(RunStage, CheckTellsWhatEveryPriorOfTheLadderCosts) {
  int64_t found = 0;
  for (const auto& entry : fs::directory_iterator(kPaper.parent_path() / "prior")) {
    ++found;
    const auto config = config::load_config_file<PriorTraining>(entry.path());
    const std::string text = checked(check_prior, config);
    EXPECT_THAT(
        text, AllOf(HasSubstr("the config is valid"), HasSubstr("parameters: "),
                    HasSubstr(str("training step at batch ", config.trainer.batch_size, ": ")),
                    HasSubstr("FLOP of matrix work"), HasSubstr("training state: "),
                    HasSubstr("(f32 weights and gradients "), HasSubstr("weight decay 0.045 on matrices and kernels ("),
                    HasSubstr(str("activations at micro-batch ", config.trainer.micro_size(), ": about "))))
        << entry.path();
  }
  EXPECT_EQ(found, 8);
  EXPECT_THAT(checked(check_prior, config::load_config_file<PriorTraining>(kPaper.parent_path() / "prior/12b.yaml")),
              AllOf(HasSubstr("12,292,840,960"), HasSubstr("96.4 PFLOP"),
                    // 8 bytes a number; 2 of each moment, 4 for the 0.2 G that are no matrices; 4 of the average
                    HasSubstr("training state: 197 GB (f32 weights and gradients 98.3 GB, moments in f16 50.0 GB, "
                              "average 49.2 GB)")));
  auto wide = config::load_config_file<PriorTraining>(kPaper.parent_path() / "prior/12b.yaml");
  wide.optimizer.moments = optim::Moments::kF32;
  wide.trainer.ema_decay = 0;
  wide.trainer.sharding = Sharding::kFull;
  EXPECT_THAT(checked(check_prior, wide),
              AllOf(HasSubstr("training state: 197 GB"), HasSubstr("moments in f32 98.3 GB)"),
                    HasSubstr("before sharding full")));
}

TEST(RunStage, CheckKnowsWhatIsFrozen) {
  auto config = config::load_config_file<PriorTraining>(kPaper.parent_path() / "prior/12b.yaml");
  config.trainer.freeze = {"transformer.resblocks."};
  // 4 bytes of a number and of its average; gradients and moments of the 0.2 G outside the blocks
  EXPECT_THAT(checked(check_prior, config), HasSubstr("training state: 101 GB (f32 weights and gradients 50.0 GB"));
  for (const auto& [prefix, message] : {std::pair{"block_", "'block_'"}, {"", "all of them frozen"}}) {
    config.trainer.freeze = {prefix};
    EXPECT_THAT(message_of<ConfigError>([&] { checked(check_prior, config); }), HasSubstr(message));
  }
}

TEST(RunStage, CheckTellsWhatCompressionSends) {
  auto config = config::load_config_file<PriorTraining>(kPaper / "prior.yaml");
  config.trainer.sharding = Sharding::kNone;
  config.trainer.gradient_compression = {{.rank = 896}, true, 8};
  // Six matrices of a layer in eight shards each; in f32.
  EXPECT_THAT(checked(check_prior, config),
              AllOf(HasSubstr("PowerSGD of rank 896: 3072 matrices of 12,092,178,432 numbers are sent as "),
                    HasSubstr("compression rate 85.9 %"), HasSubstr("error buffers: 48.4 GB a rank")));
  config = config::load_config_file<PriorTraining>(kPaper / "prior.yaml");  // hybrid in groups of 8, 1-6-9 floats
  EXPECT_THAT(checked(check_prior, config),
              AllOf(HasSubstr("compression rate 85.9 %"), HasSubstr("error buffers: 3.02 GB a rank"),
                    HasSubstr("(in groups of 8)")));
  config.trainer.gradient_compression.enabled = false;
  EXPECT_THAT(checked(check_prior, config), ::testing::Not(HasSubstr("PowerSGD")));
}

TEST(RunStage, CheckFillsInTheSizesOfOtherRuns) {
  PriorTask prior(tiny_prior(), at::kCPU);
  EXPECT_THAT(checked(check_prior, tiny_prior()),
              HasSubstr(str("parameters: ", prior.module().num_parameters() / 1000, ",")));
  ClipTask clip(tiny_clip(), at::kCPU);
  EXPECT_THAT(checked(check_clip, tiny_clip()),
              HasSubstr(str("parameters: ", clip.module().num_parameters() / 1000, ",")));
  auto lost = tiny_prior();
  lost.dvae = "nowhere";
  EXPECT_THROW(checked(check_prior, lost), ConfigError);
}

TEST(RunStage, RunsAndResumes) {
  const testing::TempDirectory scratch("stage");
  set_console_level(LogLevel::kError);
  auto config = tiny_dvae(2);
  EXPECT_EQ((run_stage<DvaeTask, DvaeTraining>(config, call_for(scratch / "run"))), cli::kDone);
  EXPECT_EQ(read_file(scratch / "run/config.yaml"), call_for("").resolved_config);
  EXPECT_THAT(read_file(scratch / "run/log.txt"), AllOf(HasSubstr("train-it: done at step 2"), HasSubstr("device: ")));
  config.trainer.num_steps = 3;
  EXPECT_EQ((run_stage<DvaeTask, DvaeTraining>(config, call_for(scratch / "run", /*resume=*/true))), cli::kDone);
  EXPECT_EQ(latest(scratch / "run").step, 3);
  EXPECT_THAT(read_file(scratch / "run/log.txt"), AllOf(HasSubstr("done at step 2"), HasSubstr("resuming at step 2")));
  set_log_file("");
}

TEST(RunStage, ASignalGivesItsOwnExitCode) {
  const testing::TempDirectory scratch("stage-signal");
  const auto config = tiny_dvae(50);
  DvaeTask task(config, at::kCPU);
  WatchedTask watched(task);
  watched.before_step = [](int64_t step) {
    if (step == 1) std::raise(SIGINT);
  };
  EXPECT_EQ(run_task(watched, setup_of(config), call_for(scratch / "run"), *distributed::make_singleton()),
            cli::kStopped);
  EXPECT_THAT(read_file(scratch / "run/log.txt"), HasSubstr("stopped by a signal at step 2"));
  set_log_file("");
}

TEST(RunStage, AnExistingRunIsRefused) {
  const testing::TempDirectory scratch("stage-existing");
  write_file(scratch / "thesis.txt", "years of work");
  const std::string message =
      message_of<ConfigError>([&] { run_stage<DvaeTask, DvaeTraining>(tiny_dvae(1), call_for(scratch.path())); });
  EXPECT_THAT(message, HasSubstr("--resume"));
  EXPECT_EQ(std::distance(fs::directory_iterator(scratch.path()), fs::directory_iterator()), 1);
}

TEST(RunStage, NothingIsMadeWhereTheDataAreMissing) {
  const testing::TempDirectory scratch("stage-data");
  auto config = tiny_dvae(1);
  config.data.sources[0].path = scratch / "nowhere.tar";
  EXPECT_THROW((run_stage<DvaeTask, DvaeTraining>(config, call_for(scratch / "run"))), ConfigError);
  config.data.sources.clear();
  EXPECT_THROW((run_stage<DvaeTask, DvaeTraining>(config, call_for(scratch / "run"))), ConfigError);
  write_file(scratch / "empty.tar", std::string(1024, '\0'));
  config.data.sources = {{scratch / "empty.tar"}};
  EXPECT_THROW((run_stage<DvaeTask, DvaeTraining>(config, call_for(scratch / "run"))), DataError);
  EXPECT_FALSE(fs::exists(scratch / "run"));
}

}  // namespace
}  // namespace dalle::training

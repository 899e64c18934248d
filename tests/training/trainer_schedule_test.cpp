// The learning rate over whole runs: halvings listed, by a plateau and by an operator, and their lines in metrics.jsonl.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dalle/training/run_stage.h"
#include "training/tiny_runs.h"

namespace dalle::training {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

/// No improvement is large enough, so every patience_steps after the first validation the rate is halved.
PriorTraining on_plateau(int64_t num_steps) {
  auto config = tiny_prior(num_steps);
  config.preview_captions = 0;
  config.trainer.validation_interval_steps = 2;
  config.learning_rate = {.type = optim::ScheduleType::kWarmupHalving,
                          .start = 8e-3,
                          .plateau = {.metric = "image_loss", .patience_steps = 4, .min_improvement = 100}};
  return config;
}

TEST(TrainerSchedule, AListedHalvingIsRecordedWithTheFirstStepThatUsesIt) {
  const testing::TempDirectory scratch("halve-at");
  auto config = tiny_prior(6);
  config.learning_rate = {.type = optim::ScheduleType::kWarmupHalving, .start = 8e-3, .halve_at = {2, 4}};
  ASSERT_TRUE(train(config, scratch / "run"));
  EXPECT_THAT(train_values(scratch / "run", "learning_rate"), ElementsAre(8e-3, 8e-3, 4e-3, 4e-3, 2e-3, 2e-3));
  EXPECT_THAT(train_values(scratch / "run", "learning_rate_halvings"), ElementsAre(0, 0, 1, 1, 2, 2));
  const auto lines = metrics_of(scratch / "run", "schedule");
  ASSERT_EQ(lines.size(), 2U);
  EXPECT_EQ(lines[0]["step"], 3);
  EXPECT_EQ(lines[0]["event"], "halved");
  EXPECT_EQ(lines[0]["cause"], "halve_at");
  EXPECT_EQ(lines[0]["before"], 8e-3);
  EXPECT_EQ(lines[1]["learning_rate"], 2e-3);
}

TEST(TrainerSchedule, APlateauHalvesAndIsRecorded) {
  const testing::TempDirectory scratch("plateau");
  ASSERT_TRUE(train(on_plateau(12), scratch / "run"));
  // Best at step 2; halved after validations 6 and 10.
  EXPECT_THAT(train_values(scratch / "run", "learning_rate"),
              ElementsAre(8e-3, 8e-3, 8e-3, 8e-3, 8e-3, 8e-3, 4e-3, 4e-3, 4e-3, 4e-3, 2e-3, 2e-3));
  const auto lines = metrics_of(scratch / "run", "schedule");
  ASSERT_EQ(lines.size(), 2U);
  EXPECT_EQ(lines[0]["step"], 6);
  EXPECT_EQ(lines[0]["cause"], "plateau");
  EXPECT_THAT(lines[0]["message"].get<std::string>(), HasSubstr("image_loss has not improved since step 2"));
}

TEST(TrainerSchedule, AResumedRunRemembersItsPlateau) {
  const testing::TempDirectory scratch("plateau-resume");
  ASSERT_TRUE(train(on_plateau(12), scratch / "straight"));
  for (const int64_t stop : {3, 5, 6, 7, 10}) {
    const fs::path root = scratch / ("stop-" + std::to_string(stop));
    ASSERT_TRUE(train(on_plateau(stop), root));
    ASSERT_TRUE(train(on_plateau(12), root, /*resume=*/true));
    EXPECT_EQ(train_values(root, "learning_rate"), train_values(scratch / "straight", "learning_rate")) << stop;
    if (stop % 2 == 0) expect_same_tensors(latest(root).model, latest(scratch / "straight").model);
  }
}

TEST(TrainerSchedule, AnOperatorsChangeIsRecorded) {
  const testing::TempDirectory scratch("operator");
  auto config = tiny_prior(4);
  config.learning_rate = {.type = optim::ScheduleType::kWarmupHalving, .start = 8e-3};
  ASSERT_TRUE(train(config, scratch / "run"));
  config.trainer.num_steps = 8;
  config.learning_rate.halve_at = {6};
  ASSERT_TRUE(train(config, scratch / "run", /*resume=*/true));
  EXPECT_THAT(train_values(scratch / "run", "learning_rate"),
              ElementsAre(8e-3, 8e-3, 8e-3, 8e-3, 8e-3, 8e-3, 4e-3, 4e-3));
  const auto lines = metrics_of(scratch / "run", "config");
  ASSERT_EQ(lines.size(), 2U);
  EXPECT_EQ(lines[0].dump(),
            R"({"step":4,"phase":"config","event":"changed","key":"trainer.num_steps","before":"4","after":"8"})");
  EXPECT_EQ(lines[1]["key"], "learning_rate.halve_at[0]");
  EXPECT_EQ(lines[1]["after"], "6");
}

TEST(TrainerSchedule, AResumedRunKeepsWhatWasChanged) {
  const testing::TempDirectory scratch("keep-change");
  set_console_level(LogLevel::kError);
  auto config = tiny_prior(1);
  const auto run = [&](bool resume) {
    const cli::Invocation call{.command = "train-prior",
                               .config_name = "tiny",
                               .run_dir = scratch / "run",
                               .resume = resume,
                               .device = "cpu",
                               .resolved_config = config::emit_yaml(config::dump(config))};
    const int code = run_stage<PriorTask, PriorTraining>(config, call);
    set_log_file("");
    return code;
  };
  ASSERT_EQ(run(false), cli::kDone);
  config.trainer.num_steps = 2;
  config.learning_rate.start = 1e-5;
  ASSERT_EQ(run(true), cli::kDone);
  const auto kept = config::load_config_file<PriorTraining>(scratch / "run/config.yaml");
  EXPECT_EQ(kept.learning_rate.start, 1e-5);
  EXPECT_EQ(kept.trainer.num_steps, 2);
  const std::string log = read_file(scratch / "run/log.txt");
  EXPECT_THAT(log, AllOf(HasSubstr("learning_rate.start changes from 0.004 to 1e-05"),
                         HasSubstr("weight decay 0.0001 on matrices and kernels (18 tensors, "),
                         HasSubstr("of the time waiting for data"), HasSubstr("model FLOPs utilisation"),
                         HasSubstr("of the measured ")));
}

TEST(TrainerSchedule, APlateauNeedsValidations) {
  auto config = on_plateau(4);
  config.trainer.validation_interval_steps = 0;
  const testing::TempDirectory scratch("plateau-blind");
  EXPECT_THAT(message_of<ConfigError>([&] { train(config, scratch / "run"); }),
              HasSubstr("trainer.validation_interval_steps"));
  config = on_plateau(4);
  config.learning_rate.plateau.metric = "elb";
  EXPECT_THAT(message_of<ConfigError>([&] { train(config, scratch / "run"); }),
              HasSubstr("learning_rate.plateau.metric: expected one of: train_loss"));
  EXPECT_TRUE(fs::is_empty(scratch.path())) << "said before the run begins";
  auto clip = tiny_clip(4);
  clip.trainer.validation_interval_steps = 2;
  clip.learning_rate = config.learning_rate;
  EXPECT_THAT(message_of<ConfigError>([&] { train(clip, scratch / "clip"); }),
              HasSubstr("expected one of: train_image_to_text_r1, "));
}

TEST(TrainerSchedule, CheckKnowsAPlateausMetric) {
  auto config = on_plateau(4);
  config.learning_rate.plateau.metric = "elb";
  EXPECT_THAT(message_of<ConfigError>([&] { check_prior(config, {.command = "train-prior"}); }),
              HasSubstr("learning_rate.plateau.metric: expected one of: train_loss"));
}

/// A dVAE's convolutions transform f32 kernels; the others' linear layers round their matrices to the compute type.
TEST(TrainerSetup, ResblockMatricesAreRoundedToTheComputeTypeButADvaesAreNot) {
  auto prior = tiny_prior(1);
  auto clip = tiny_clip(1);
  auto dvae = tiny_dvae(1);
  prior.precision = clip.precision = dvae.precision = Precision::kBf16;
  EXPECT_EQ(PriorTask(prior, at::kCPU).resblock_matrix_type(), at::kBFloat16);
  EXPECT_EQ(ClipTask(clip, at::kCPU).resblock_matrix_type(), at::kBFloat16);
  EXPECT_EQ(DvaeTask(dvae, at::kCPU).resblock_matrix_type(), std::nullopt);
  prior.precision = Precision::kFp16;
  EXPECT_EQ(PriorTask(prior, at::kCPU).resblock_matrix_type(), at::kHalf);
}

/// What is known before a run is what its validations give.
TEST(TrainerSchedule, ValidationNamesAreThoseOfTheNumbers) {
  const auto expect_names = [](TrainingTask& task) {
    start(task);
    std::vector<std::string> names;
    for (const auto& [name, value] : task.evaluate(0, layers::plain_runner())) names.push_back(name);
    EXPECT_EQ(task.validation_names(), names);
    EXPECT_FALSE(names.empty());
  };
  for (const bool on_pads : {true, false}) {
    auto config = tiny_prior(1);
    config.model.text_loss_on_pads = on_pads;
    PriorTask prior(config, at::kCPU);
    expect_names(prior);
  }
  DvaeTask dvae(tiny_dvae(1), at::kCPU), vq(tiny_vq(1), at::kCPU);
  expect_names(dvae);
  expect_names(vq);
  ClipTask clip(tiny_clip(1), at::kCPU);
  expect_names(clip);
}

TEST(TrainerSpeed, UtilisationIsAShareOfTheGivenSpeed) {
  const testing::TempDirectory scratch("mfu");
  set_console_level(LogLevel::kError);
  const auto config = tiny_prior(3);
  PriorTask task(config, at::kCPU);
  auto setup = setup_of(config);
  setup.matrix_speed = 1e12;
  const auto communicator = distributed::make_singleton();
  Trainer trainer(setup, task, *communicator);
  RunDirectory run = RunDirectory::create(scratch / "run", setup.resolved_config);
  ASSERT_TRUE(trainer.run(run));
  const double tokens = static_cast<double>(config.model.text_context + 16);
  for (const auto& line : metrics_of_all_keys(scratch / "run", "train")) {
    const double per_second = line.at("tokens_per_second").get<double>();
    EXPECT_NEAR(line.at("mfu").get<double>(), per_second / tokens * task.cost().flops_per_sample / 1e12, 1e-12);
    EXPECT_GT(line.at("mfu").get<double>(), 0);
    EXPECT_GE(line.at("prepare_share").get<double>(), 0);
    EXPECT_LE(line.at("prepare_share").get<double>(), 1);
  }
}

TEST(TrainerInit, APartIsTakenOnlyWhereItIsAskedFor) {
  const testing::TempDirectory scratch("init-partial");
  ASSERT_TRUE(train(tiny_prior(2), scratch / "small"));
  auto config = tiny_prior(0);
  config.trainer.seed = 9;
  config.model.num_layers = 6;
  config.trainer.init_from = scratch / "small";
  EXPECT_THAT(message_of<ConfigError>([&] { train(config, scratch / "deep"); }),
              HasSubstr("trainer.init_partial: true"));
  config.trainer.init_partial = true;
  ASSERT_TRUE(train(config, scratch / "deep"));
  const auto small = latest(scratch / "small"), deep = latest(scratch / "deep");
  const std::string name = "transformer.resblocks.1.mlp.c_fc.weight";
  EXPECT_TRUE(testing::bitwise_equal(*storage::find_tensor(deep.model, name), *storage::find_tensor(small.ema, name)));
  expect_same_tensors(deep.ema, deep.model);
}

}  // namespace
}  // namespace dalle::training

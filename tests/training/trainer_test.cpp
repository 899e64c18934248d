// What the loop does in each step: accumulating, skipping, freezing, averaging, starting from other weights.
#include "dalle/training/trainer.h"

#include <c10/core/GradMode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "dalle/models/load.h"
#include "dalle/training/run_stage.h"
#include "training/tiny_runs.h"

namespace dalle::training {
namespace {

using ::testing::HasSubstr;
using Tensors = std::vector<storage::NamedTensor>;

/// The values that a run with this config starts from.
template <class Config>
Tensors initial_weights(const Config& config) {
  TaskOf<Config> task(config, at::kCPU);
  task.module().materialize(at::kCPU);
  task.module().initialize(static_cast<uint64_t>(config.trainer.seed));
  return models::named_tensors(task.module());
}

int64_t num_changed(const Tensors& actual, const Tensors& before) {
  int64_t changed = 0;
  for (size_t i = 0; i < before.size(); ++i) changed += actual[i].tensor.equal(before[i].tensor) ? 0 : 1;
  return changed;
}

// ------------------------------------------------------------------------------------------------------- micro-batches

template <class Config>
void expect_accumulation_changes_nothing(Config config, int64_t micro_batch_size, const std::string& name) {
  const testing::TempDirectory scratch("accumulate-" + name);
  config.trainer.batch_size = 8;
  // Adam divides by the root of the second moment: without eps, what is rounding noise in a gradient (an attention's key
  // bias has no gradient at all) would become whole steps.
  config.optimizer.eps = 1e-3;
  ASSERT_TRUE(train(config, scratch / "whole"));
  config.trainer.micro_batch_size = micro_batch_size;
  ASSERT_TRUE(train(config, scratch / "parts"));
  for (const std::string value : {"loss", "grad_norm"}) {
    const auto whole = train_values(scratch / "whole", value), parts = train_values(scratch / "parts", value);
    ASSERT_EQ(parts.size(), whole.size());
    for (size_t i = 0; i < whole.size(); ++i) EXPECT_NEAR(parts[i], whole[i], 1e-5 * std::abs(whole[i])) << value << i;
  }
  const auto whole = latest(scratch / "whole"), in_parts = latest(scratch / "parts");
  ASSERT_GT(num_changed(whole.model, initial_weights(config)), 0);
  for (size_t i = 0; i < whole.model.size(); ++i) {
    EXPECT_TRUE(testing::close_to(in_parts.model[i].tensor, whole.model[i].tensor, 1e-5)) << whole.model[i].name;
  }
}

TEST(Trainer, MicroBatchesOfTheDvaeAddUp) { expect_accumulation_changes_nothing(tiny_dvae(5), 2, "dvae"); }

// The codebook's counts, sums and restarts too.
TEST(Trainer, MicroBatchesOfAVectorQuantisedModelAddUp) { expect_accumulation_changes_nothing(tiny_vq(5), 2, "vq"); }

// Captions differ in length, so that a mean over micro-batches would not be the mean over the batch.
TEST(Trainer, MicroBatchesOfThePriorAddUp) { expect_accumulation_changes_nothing(tiny_prior(5), 2, "prior"); }

// By gradient caching: each micro-batch is compared with all of the batch.
TEST(Trainer, MicroBatchesOfClipAddUp) { expect_accumulation_changes_nothing(tiny_clip(5), 2, "clip"); }

TEST(Trainer, MicroBatchesOfOneAddUpToo) { expect_accumulation_changes_nothing(tiny_prior(3), 1, "one"); }

// --------------------------------------------------------------------------------------------------------- bad numbers

template <class Config>
void expect_checkpointing_changes_nothing(Config config, const std::string& name) {
  const testing::TempDirectory scratch("checkpointing-" + name);
  ASSERT_TRUE(train(config, scratch / "kept"));
  config.trainer.activation_checkpointing = true;
  ASSERT_TRUE(train(config, scratch / "recomputed"));
  SCOPED_TRACE(name);
  expect_same_tensors(latest(scratch / "recomputed").model, latest(scratch / "kept").model);
}

TEST(Trainer, ActivationCheckpointingChangesNoBit) {
  expect_checkpointing_changes_nothing(tiny_dvae(3), "dvae");
  expect_checkpointing_changes_nothing(tiny_clip(3), "clip");
  expect_checkpointing_changes_nothing(tiny_prior(3), "prior");
  auto in_fp16 = tiny_prior(3);
  in_fp16.precision = Precision::kFp16;
  expect_checkpointing_changes_nothing(in_fp16, "fp16");
}

TEST(Trainer, AnUpdateWithoutFiniteGradientIsSkippedAndCounted) {
  const testing::TempDirectory scratch("nonfinite");
  for (const double poison : {std::numeric_limits<double>::quiet_NaN(), std::numeric_limits<double>::infinity()}) {
    const auto config = tiny_dvae(6);
    DvaeTask task(config, at::kCPU);
    WatchedTask watched(task);
    watched.after_step = [&](int64_t step, StepOutput& output) {
      if (step == 2 || step == 4) output.loss = output.loss * poison;
    };
    const fs::path root = scratch / str(poison);
    EXPECT_TRUE(train_task(watched, config, root));
    EXPECT_EQ(train_values(root, "skipped_updates"), (std::vector<double>{0, 0, 1, 1, 2, 2}));
    const auto checkpoint = latest(root);
    EXPECT_EQ(checkpoint.step, 6);
    EXPECT_EQ(storage::find_tensor(checkpoint.optimizer, "steps")->item<int64_t>(), 4);
    for (const auto& tensors : {checkpoint.model, checkpoint.ema}) {
      for (const auto& [name, tensor] : tensors) EXPECT_TRUE(at::isfinite(tensor).all().item<bool>()) << name;
    }
  }
}

TEST(Trainer, TooManyInARowEndTheRunWithTheLastGoodStateSaved) {
  const testing::TempDirectory scratch("nonfinite-end");
  auto config = tiny_prior(20);
  config.trainer.max_nonfinite_steps = 3;
  {
    PriorTask task(config, at::kCPU);
    WatchedTask watched(task);
    watched.after_step = [&](int64_t step, StepOutput& output) {
      if (step >= 5) output.loss = output.loss * std::numeric_limits<double>::quiet_NaN();
    };
    const std::string message = message_of<Error>([&] { train_task(watched, config, scratch / "run"); });
    EXPECT_THAT(message, HasSubstr("3 updates in a row"));
    EXPECT_THAT(message, HasSubstr("learning_rate"));
    EXPECT_THAT(message, HasSubstr("loss = nan"));
    EXPECT_THAT(message, HasSubstr("batch: "));
  }
  const auto saved = latest(scratch / "run");
  EXPECT_EQ(saved.step, 7) << "the third bad update is not done";
  config.trainer.num_steps = 5;
  ASSERT_TRUE(train(config, scratch / "good"));
  expect_same_tensors(saved.model, latest(scratch / "good").model);
  expect_same_tensors(saved.ema, latest(scratch / "good").ema);
  config.trainer.num_steps = 9;
  EXPECT_TRUE(train(config, scratch / "run", /*resume=*/true));
  EXPECT_EQ(train_values(scratch / "run", "skipped_updates").back(), 3) << "the one that ended it counts too";
}

/// The health lines of a run in which one parameter's gradient and one part of the loss are spoilt at `steps`.
std::vector<nlohmann::ordered_json> spoilt_run(const DvaeTraining& config, const fs::path& root,
                                               const std::vector<int64_t>& steps, std::vector<std::string>* keys) {
  DvaeTask task(config, at::kCPU);
  WatchedTask watched(task);
  watched.after_step = [&](int64_t step, StepOutput& output) {
    if (std::find(steps.begin(), steps.end(), step) == steps.end()) return;
    for (const auto& [name, parameter] : task.module().named_parameters()) {
      if (name != "decoder.blocks.output.conv.b") continue;
      output.loss = output.loss + (parameter->tensor * std::numeric_limits<float>::infinity()).sum() * 0;
    }
    output.metrics[1].second = output.metrics[1].second * std::numeric_limits<double>::infinity();  // "kl"
  };
  EXPECT_TRUE(train_task(watched, config, root));
  if (keys != nullptr)
    *keys = task.make_loader(config.trainer.micro_size(), 2 * config.trainer.batch_size)->next().keys;
  return metrics_of(root, "health");
}

TEST(Trainer, SaysWhichNumbersWereNotFinite) {
  const testing::TempDirectory scratch("nonfinite-names");
  std::vector<std::string> keys;
  const auto events = spoilt_run(tiny_dvae(4), scratch / "run", {2}, &keys);
  ASSERT_EQ(events.size(), 1U);
  EXPECT_EQ(events[0]["step"], 2);
  EXPECT_EQ(events[0]["alarm"], "nonfinite");
  EXPECT_EQ(events[0]["skipped_updates"], 1);
  const std::string message = events[0]["message"];
  EXPECT_THAT(message, HasSubstr("loss = nan, kl = inf;"));
  EXPECT_THAT(message, HasSubstr("gradients of 1 of "));
  EXPECT_THAT(message, HasSubstr("(decoder.blocks.output.conv.b)"));
  ASSERT_EQ(keys.size(), 4U);
  for (const auto& key : keys) EXPECT_THAT(message, HasSubstr(key));
  EXPECT_THAT(message, HasSubstr("hint: lower learning_rate"));
}

TEST(Trainer, DoesNotRepeatAWarningEveryStep) {
  const testing::TempDirectory scratch("nonfinite-repeat");
  auto config = tiny_dvae(9);
  const std::vector<int64_t> bad{1, 2, 4, 6, 8};
  EXPECT_EQ(spoilt_run(config, scratch / "once", bad, nullptr).size(), 1U);
  EXPECT_EQ(train_values(scratch / "once", "skipped_updates").back(), 5) << "but each is counted";
  config.trainer.health.repeat_steps = 5;
  const auto events = spoilt_run(config, scratch / "again", bad, nullptr);
  ASSERT_EQ(events.size(), 2U);
  EXPECT_EQ(events[1]["step"], 6);
  EXPECT_THAT(events[1]["message"].get<std::string>(), HasSubstr("1 in a row, 4 in all"));
}

TEST(Trainer, NamesThePicturesOfTheBadMicroBatchOnly) {
  const testing::TempDirectory scratch("nonfinite-micro");
  auto config = tiny_dvae(2);
  config.trainer.micro_batch_size = 2;
  DvaeTask task(config, at::kCPU);
  WatchedTask watched(task);
  int calls = 0;
  watched.after_step = [&](int64_t, StepOutput& output) {
    if (++calls == 2) output.loss = output.loss * std::numeric_limits<double>::quiet_NaN();
  };
  ASSERT_TRUE(train_task(watched, config, scratch / "run"));
  const auto events = metrics_of(scratch / "run", "health");
  ASSERT_EQ(events.size(), 1U);
  const auto first = task.make_loader(4, 0)->next().keys;
  EXPECT_THAT(events[0]["message"].get<std::string>(), HasSubstr("batch: " + first[2] + ", " + first[3] + "\n"));
}

// ----------------------------------------------------------------------------------------------------------- averages

TEST(Trainer, TheAverageIsNotTheWeights) {
  const testing::TempDirectory scratch("ema");
  auto config = tiny_dvae(4);
  config.trainer.ema_interval_steps = 2;
  ASSERT_TRUE(train(config, scratch / "run"));
  const auto checkpoint = latest(scratch / "run");
  EXPECT_EQ(num_changed(checkpoint.ema, checkpoint.model), static_cast<int64_t>(checkpoint.model.size()));
  // Updated after steps 2 and 4, from the start's values on.
  config.trainer.num_steps = 2;
  ASSERT_TRUE(train(config, scratch / "half"));
  const auto half = latest(scratch / "half").model, start = initial_weights(config);
  for (size_t i = 0; i < start.size(); ++i) {
    const Tensor after_2 = start[i].tensor * 0.9 + half[i].tensor * 0.1;
    const Tensor expected = after_2 * 0.9 + checkpoint.model[i].tensor * 0.1;
    EXPECT_TRUE(testing::close_to(checkpoint.ema[i].tensor, expected, 1e-6)) << start[i].name;
  }
}

TEST(Trainer, ValidationSeesTheAverage) {
  const testing::TempDirectory scratch("ema-validation");
  const auto config = tiny_dvae(6);
  ASSERT_TRUE(train(config, scratch / "run"));
  const auto lines = metrics_of(scratch / "run", "validation");
  ASSERT_EQ(lines.size(), 1U);
  const auto checkpoint = latest(scratch / "run");
  const auto psnr_with = [&](const Tensors& weights) {
    DvaeTask task(config, at::kCPU);
    task.module().materialize(at::kCPU);
    models::load_parameters(task.module(), weights, "");
    const c10::NoGradGuard no_grad;
    for (const auto& [name, value] : task.evaluate(6, layers::plain_runner())) {
      if (name == "psnr") return value;
    }
    return 0.0;
  };
  EXPECT_EQ(lines[0]["psnr"].get<double>(), psnr_with(checkpoint.ema));
  EXPECT_NE(lines[0]["psnr"].get<double>(), psnr_with(checkpoint.model));
}

TEST(Trainer, RunsWithoutAnAverage) {
  const testing::TempDirectory scratch("no-ema");
  auto config = tiny_dvae(2);
  config.trainer.ema_decay = 0;
  ASSERT_TRUE(train(config, scratch / "run"));
  EXPECT_TRUE(latest(scratch / "run").ema.empty());
  EXPECT_FALSE(latest(scratch / "run").identities.contains("ema"));
  EXPECT_NO_THROW(models::load_dvae(scratch / "run", {}));
}

// ------------------------------------------------------------------------------------------------- starts and freezing

TEST(Trainer, StartsFromOtherWeights) {
  const testing::TempDirectory scratch("init-from");
  ASSERT_TRUE(train(tiny_dvae(3), scratch / "first"));
  auto config = tiny_dvae(0);
  config.trainer.seed = 99;
  config.trainer.init_from = scratch / "first";
  ASSERT_TRUE(train(config, scratch / "second"));
  const auto first = latest(scratch / "first"), second = latest(scratch / "second");
  EXPECT_EQ(second.step, 0);
  expect_same_tensors(second.model, first.ema);
  expect_same_tensors(second.ema, first.ema);
  EXPECT_TRUE(second.optimizer.empty() || second.optimizer.size() == 1) << "no moments are taken over";
}

/// What run_task, the whole of a command, does with a config that must be refused.
template <class Config>
std::string refusal(const Config& config, const fs::path& root) {
  TaskOf<Config> task(config, at::kCPU);
  const cli::Invocation call{.command = "train", .config_name = "tiny", .run_dir = root, .resolved_config = "x"};
  const std::string message =
      message_of<ConfigError>([&] { run_task(task, setup_of(config), call, *distributed::make_singleton()); });
  EXPECT_FALSE(fs::exists(root)) << "nothing is written before the config is known to be good";
  return message;
}

TEST(Trainer, RefusesWeightsOfAnotherArchitecture) {
  const testing::TempDirectory scratch("init-from-other");
  ASSERT_TRUE(train(tiny_dvae(1), scratch / "first"));
  auto config = tiny_dvae(2);
  config.trainer.init_from = scratch / "first";
  config.model.vocab_size = 17;
  const std::string message = refusal(config, scratch / "second");
  EXPECT_THAT(message, HasSubstr("trainer.init_from"));
  EXPECT_THAT(message, HasSubstr("encoder.blocks.output.conv.w is [16, "));
  EXPECT_THAT(message, HasSubstr("where the model has [17, "));
  config.model.vocab_size = 16;
  config.model.num_blocks_per_group = 2;
  EXPECT_THAT(refusal(config, scratch / "second"), HasSubstr("is missing"));
}

TEST(Trainer, RefusesWeightsOfAnotherKindAndOfNowhere) {
  const testing::TempDirectory scratch("init-from-kind");
  auto config = tiny_prior(2);
  config.trainer.init_from = parts().dvae;
  EXPECT_THAT(refusal(config, scratch / "run"), HasSubstr("expected a checkpoint of a prior, got one of a dvae"));
  config.trainer.init_from = scratch / "nowhere";
  EXPECT_THAT(refusal(config, scratch / "run"), HasSubstr("nowhere"));
}

TEST(Trainer, FrozenParametersKeepTheirBits) {
  const testing::TempDirectory scratch("freeze");
  auto config = tiny_dvae(4);
  config.trainer.freeze = {"encoder.", "decoder.blocks.input."};
  ASSERT_TRUE(train(config, scratch / "run"));
  const auto start = initial_weights(config);
  const auto checkpoint = latest(scratch / "run");
  ASSERT_EQ(checkpoint.model.size(), start.size());
  for (size_t i = 0; i < start.size(); ++i) {
    const std::string& name = start[i].name;
    const bool frozen = name.starts_with("encoder.") || name.starts_with("decoder.blocks.input.");
    EXPECT_EQ(static_cast<bool>(testing::bitwise_equal(checkpoint.model[i].tensor, start[i].tensor)), frozen) << name;
    EXPECT_EQ(static_cast<bool>(testing::bitwise_equal(checkpoint.ema[i].tensor, start[i].tensor)), frozen) << name;
    EXPECT_EQ(storage::find_tensor(checkpoint.optimizer, name + ".exp_avg") == nullptr, frozen) << name;
  }
}

TEST(Trainer, RefusesToFreezeWhatIsNotThere) {
  const testing::TempDirectory scratch("freeze-unknown");
  auto config = tiny_dvae(1);
  config.trainer.freeze = {"encoder.", "encodr."};
  const std::string message = refusal(config, scratch / "run");
  EXPECT_THAT(message, HasSubstr("'encodr.'"));
  EXPECT_THAT(message, HasSubstr("encoder.blocks.input.w"));
}

TEST(Trainer, RefusesToFreezeEverything) {
  const testing::TempDirectory scratch("freeze-all");
  auto config = tiny_dvae(1);
  config.trainer.freeze = {"encoder.", "decoder."};
  EXPECT_THAT(refusal(config, scratch / "run"), HasSubstr("trainer.freeze"));
}

// ------------------------------------------------------------------------------------------------------------ one batch

template <class Config>
std::vector<double> overfit(Config config, const std::string& value) {
  const testing::TempDirectory scratch("overfit");
  config.trainer.overfit_one_batch = true;
  config.trainer.validation_interval_steps = 0;
  config.validation.sources.clear();
  config.learning_rate = {.start = 1e-2};
  EXPECT_TRUE(train(config, scratch / "run"));
  return train_values(scratch / "run", value);
}

TEST(Trainer, OneBatchIsLearntByHeart) {
  const auto prior = overfit(tiny_prior(60), "image_loss");
  EXPECT_GT(prior.front(), 2.0);
  EXPECT_LT(prior.back(), 0.3) << "the prior";
  auto clip_config = tiny_clip(60);
  const auto clip = overfit(clip_config, "loss");
  EXPECT_GT(clip.front(), 1.0);
  EXPECT_LT(clip.back(), 0.05) << "CLIP";
  auto dvae_config = tiny_dvae(60);
  dvae_config.relaxation.kl_weight_end = 0;
  const auto dvae = overfit(dvae_config, "nll");
  EXPECT_LT(dvae.back(), dvae.front() - 0.5) << "the dVAE";
}

// ----------------------------------------------------------------------------------------------------------- the files

TEST(Trainer, WritesWhatTheRunDirectoryPromises) {
  const testing::TempDirectory scratch("files");
  auto config = tiny_dvae(5);
  config.trainer.log_interval_steps = 2;
  config.trainer.preview_interval_steps = 2;
  config.trainer.checkpoint_interval_steps = 1;
  config.trainer.keep_checkpoints = 2;
  config.trainer.clip_norm = 0.01;
  ASSERT_TRUE(train(config, scratch / "run"));
  EXPECT_EQ(storage::list_checkpoints(scratch / "run"), (std::vector<std::string>{"step-00000004", "step-00000005"}));
  EXPECT_EQ(fs::read_symlink(scratch / "run/checkpoints/latest"), "step-00000005");
  for (const char* file :
       {"inputs-00000000", "reconstructions-00000002", "reconstructions-00000004", "reconstructions-00000005"}) {
    EXPECT_TRUE(fs::exists(scratch / "run" / "samples" / (std::string(file) + ".png"))) << file;
  }
  EXPECT_FALSE(fs::is_empty(scratch / "run/tensorboard"));
  std::vector<int64_t> steps;
  for (const auto& line : metrics_of(scratch / "run", "train")) {
    steps.push_back(line["step"]);
    for (const char* key : {"loss", "nll", "kl", "learning_rate", "temperature", "kl_weight", "bad_samples",
                            "grad_norm", "grad_norm/encoder.blocks.group_1.block_1"}) {
      EXPECT_TRUE(line.contains(key)) << key;
    }
    double squares = 0;  // of the blocks, before clipping as the whole
    for (const auto& [key, value] : line.items()) {
      if (key.starts_with("grad_norm/")) squares += value.get<double>() * value.get<double>();
    }
    EXPECT_NEAR(std::sqrt(squares), line["grad_norm"].get<double>(), 1e-4 * std::sqrt(squares));
    EXPECT_GT(std::sqrt(squares), config.trainer.clip_norm);
  }
  EXPECT_EQ(steps, (std::vector<int64_t>{1, 2, 4, 5}));
}

TEST(Trainer, ChecksItsConfig) {
  TrainerConfig config{.batch_size = 8, .micro_batch_size = 3};
  EXPECT_THAT(message_of<ConfigError>([&] { config.validate("trainer"); }),
              HasSubstr("batch_size divisible by micro_batch_size 3, got 8"));
  config.micro_batch_size = 2;
  EXPECT_NO_THROW(config.validate("trainer"));
  config.ema_decay = 1;
  EXPECT_THAT(message_of<ConfigError>([&] { config.validate("trainer"); }), HasSubstr("ema_decay below 1"));
}

}  // namespace
}  // namespace dalle::training

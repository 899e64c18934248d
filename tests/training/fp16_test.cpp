// Runs in fp16 with per-resblock gradient scaling.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "training/fp16_runs.h"

namespace dalle::training {
namespace {

using testing::bitwise_equal;
using ::testing::HasSubstr;

/// A task in fp16 that does without scales.
struct Unscaled : WatchedTask {
  using WatchedTask::WatchedTask;
  bool needs_gradient_scaling() const override { return false; }
};

/// Trains with the loss times `factor`.
template <class Watched = WatchedTask>
void train_scaled(const PriorTraining& config, const fs::path& root, double factor, bool resume = false) {
  PriorTask task(config, at::kCPU);
  Watched watched(task);
  watched.after_step = [&](int64_t, StepOutput& output) { output.loss = output.loss * factor; };
  train_task(watched, config, root, resume);
}

// With a loss so small that fp16 would hold no gradient of it: the scales are what makes the runs alike.
TEST(Fp16, FiftyStepsFollowThoseOfF32) {
  const testing::TempDirectory scratch("fp16-losses");
  constexpr double kFactor = 0x1p-14, kBound = 2e-3;
  const auto config_in = [](Precision precision) {
    auto config = prior_in(precision, 50);
    config.optimizer.eps = 1e-12;
    config.trainer.clip_norm = 0;
    return config;
  };
  train_scaled(config_in(Precision::kF32), scratch / "f32", kFactor);
  train_scaled(config_in(Precision::kFp16), scratch / "fp16", kFactor);
  train_scaled<Unscaled>(config_in(Precision::kFp16), scratch / "unscaled", kFactor);
  const auto expected = train_values(scratch / "f32", "loss");
  EXPECT_LT(expected.back(), 0.9 * expected.front());
  EXPECT_LT(largest_relative_difference(train_values(scratch / "fp16", "loss"), expected), kBound);
  EXPECT_GT(largest_relative_difference(train_values(scratch / "unscaled", "loss"), expected), 10 * kBound);
  const auto last = metrics_of(scratch / "fp16", "train").back();
  EXPECT_EQ(last["gradient_scale_log2/transformer.resblocks.3.mlp"], 13.05);
  EXPECT_EQ(last["overflowed_updates"], 0);
  EXPECT_FALSE(metrics_of(scratch / "f32", "train").back().contains("overflowed_updates"));
}

/// A run of two steps, and then a third in which the scale of block 3, the MLP of layer 1, is far too large.
struct Overflow {
  explicit Overflow(const std::string& name, PriorTraining given) : scratch(name), config(std::move(given)) {
    config.trainer.max_nonfinite_steps = 1;
    config.trainer.num_steps = 2;
    train_scaled(config, scratch / "run", kFactor);
    const fs::path folder = scratch / "run" / "checkpoints" / "step-00000002";
    before = storage::load_checkpoint(folder);
    optimizer_tensor(before, "resblock_scaling.log2")[3] = 24'000;
    storage::save_checkpoint(folder, before);
    config.trainer.num_steps = 3;
    train_scaled(config, scratch / "run", kFactor, /*resume=*/true);
    after = latest(scratch / "run");
  }
  static constexpr double kFactor = 64;

  /// Which parameters have changed, and whether all are finite.
  std::vector<std::string> changed() const {
    std::vector<std::string> names;
    for (const auto& [name, tensor] : after.model) {
      EXPECT_TRUE(at::isfinite(tensor).all().item<bool>()) << name;
      if (!bitwise_equal(tensor, *storage::find_tensor(before.model, name))) names.push_back(name);
    }
    return names;
  }
  std::vector<int64_t> scales() const {
    const Tensor log2 = optimizer_tensor(after, "resblock_scaling.log2");
    return {log2.const_data_ptr<int64_t>(), log2.const_data_ptr<int64_t>() + log2.numel()};
  }

  testing::TempDirectory scratch;
  PriorTraining config;
  storage::Checkpoint before, after;
};

const std::vector<int64_t> kScalesAfterOverflow{13'003, 13'003, 13'003, 23'500, 13'003, 13'003, 13'003, 13'003};

TEST(Fp16, AnOverflowLeavesItsBlockAloneOutOfTheUpdate) {
  const Overflow run("fp16-overflow", prior_in(Precision::kFp16, 2));
  EXPECT_EQ(run.scales(), kScalesAfterOverflow);
  const auto is_in_block = [](const std::string& name) {
    return name.starts_with("transformer.resblocks.1.ln_2") || name.starts_with("transformer.resblocks.1.mlp");
  };
  const auto changed = run.changed();
  for (const auto& [name, tensor] : run.before.model) {
    const bool has_changed = std::find(changed.begin(), changed.end(), name) != changed.end();
    EXPECT_EQ(has_changed, !is_in_block(name)) << name;
    if (!is_in_block(name)) continue;
    for (const char* part : {".exp_avg", ".exp_avg_sq", ".step"}) {
      EXPECT_TRUE(bitwise_equal(optimizer_tensor(run.after, name + part), optimizer_tensor(run.before, name + part)));
    }
  }
  const auto last = metrics_of(run.scratch / "run", "train").back();
  EXPECT_EQ(last["overflowed_updates"], 1);
  EXPECT_EQ(last["skipped_updates"], 0);
  EXPECT_TRUE(last["grad_norm"].is_number());  // not "inf"
  EXPECT_EQ(last["grad_norm/transformer.resblocks.1"].is_number(), true);
  EXPECT_TRUE(metrics_of(run.scratch / "run", "health").empty());
}

TEST(Fp16, WithCompressedGradientsTheWholeUpdateIsLeftOut) {
  auto config = prior_in(Precision::kFp16, 2);
  config.trainer.gradient_compression.enabled = true;
  config.trainer.gradient_compression.rank = 2;
  const Overflow run("fp16-compressed", config);
  EXPECT_EQ(run.scales(), kScalesAfterOverflow);
  EXPECT_TRUE(run.changed().empty());
  const auto last = metrics_of(run.scratch / "run", "train").back();
  EXPECT_EQ(last["overflowed_updates"], 1);
  EXPECT_EQ(last["skipped_updates"], 0);
}

TEST(Fp16, ALossThatIsNotFiniteStillEndsTheRunAndMovesNoScale) {
  const testing::TempDirectory scratch("fp16-nan");
  auto config = prior_in(Precision::kFp16, 10);
  config.trainer.max_nonfinite_steps = 2;
  PriorTask task(config, at::kCPU);
  WatchedTask watched(task);
  watched.after_step = [](int64_t step, StepOutput& output) {
    if (step >= 2) output.loss = output.loss * std::numeric_limits<double>::quiet_NaN();
  };
  const auto message = message_of<Error>([&] { train_task(watched, config, scratch / "run"); });
  EXPECT_THAT(message, HasSubstr("2 updates in a row had a loss or gradient that was not finite"));
  EXPECT_THAT(message, HasSubstr("activations of fp16 must stay below 65,504"));
  EXPECT_TRUE(
      at::equal(optimizer_tensor(latest(scratch / "run"), "resblock_scaling.log2"), at::full({8}, 13'002, at::kLong)));
}

TEST(Fp16, ARunMayGoOnInAnotherPrecision) {
  const testing::TempDirectory scratch("fp16-changed");
  for (int64_t steps = 1; const Precision precision : {Precision::kF32, Precision::kFp16, Precision::kF32}) {
    train(prior_in(precision, steps), scratch / "run", /*resume=*/steps > 1);
    const bool has_scales = storage::find_tensor(latest(scratch / "run").optimizer, "resblock_scaling.log2") != nullptr;
    EXPECT_EQ(has_scales, precision == Precision::kFp16);
    ++steps;
  }
  EXPECT_EQ(train_values(scratch / "run", "loss").size(), 3U);
}

TEST(Fp16, ExponentsAreWrittenAndCutWithTheMetrics) {
  const testing::TempDirectory scratch("fp16-exponents");
  auto config = prior_in(Precision::kFp16, 4);
  config.trainer.exponent_histogram_interval_steps = 2;
  train(config, scratch / "run");
  const std::string text = read_file(scratch / "run" / "exponents.jsonl");
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 2 * 8 * 2);  // steps, blocks, kinds
  const auto line = nlohmann::json::parse(text.substr(0, text.find('\n')));
  EXPECT_EQ(line["step"], 2);
  EXPECT_EQ(line["block"], "transformer.resblocks.0.attn");
  EXPECT_EQ(line["scale_log2"], 13.001);
  int64_t sum = line["zeros"].get<int64_t>() + line["not_finite"].get<int64_t>();
  for (const auto& count : line["counts"]) sum += count.get<int64_t>();
  EXPECT_EQ(sum, 4 * (10 + 16) * 16);  // samples, slots, dim
}

TEST(Fp16, WhatHasNoScalesIsRefused) {
  const auto refusal = [](const auto& config) { return message_of<ConfigError>([&] { config.validate("config"); }); };
  DvaeTraining dvae;
  dvae.precision = Precision::kFp16;
  EXPECT_THAT(refusal(dvae), HasSubstr("per-resblock gradient scales are for the prior's transformer"));
  dvae.precision = Precision::kAuto;
  dvae.relaxation_precision = Precision::kFp16;
  EXPECT_THAT(refusal(dvae), HasSubstr("relaxation_precision auto, f32 or bf16"));
  ClipTraining clip;
  clip.precision = Precision::kFp16;
  EXPECT_THAT(refusal(clip), HasSubstr("bf16 holds them"));
  PriorTraining prior = prior_in(Precision::kFp16, 1);
  prior.validate("config");
  prior.head_precision = Precision::kFp16;
  EXPECT_THAT(refusal(prior), HasSubstr("head_precision auto, f32 or bf16"));
  const testing::TempDirectory scratch("fp16-refused");
  auto without = prior_in(Precision::kF32, 1);
  without.trainer.exponent_histogram_interval_steps = 1;
  EXPECT_THAT(message_of<ConfigError>([&] { train(without, scratch / "run"); }), HasSubstr("precision: fp16"));
}

}  // namespace
}  // namespace dalle::training

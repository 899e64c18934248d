// Updates with numbers that are not finite: told on the device, counted and reported by the host, now or a step later.
#include "dalle/training/finite_check.h"

#include <gmock/gmock.h>

#include <limits>
#include <set>

#include "dalle/models/load.h"
#include "training/tiny_runs.h"

namespace dalle::training {
namespace {

using ::testing::HasSubstr;

constexpr double kNan = std::numeric_limits<double>::quiet_NaN(), kInf = std::numeric_limits<double>::infinity();

/// Numbers of an update of two micro-batches and two parameters, "a" and "b".
UpdateNumbers numbers_of(int64_t step, double loss, double norm_b, at::Device device = at::kCPU) {
  const auto on_device = [&](const Tensor& tensor) { return tensor.to(device); };
  return {.step = step,
          .losses = {{"loss", on_device(at::scalar_tensor(loss))}, {"kl", on_device(at::scalar_tensor(1.0))}},
          .micro_losses = {on_device(at::scalar_tensor(1.0)), on_device(at::scalar_tensor(loss))},
          .keys = {{"first"}, {"second", "third"}},
          .gradients = {{"a", "b"}, on_device(at::tensor({3.0, norm_b}, at::kDouble))}};
}

/// The flag of such an update.
float judged(FiniteCheck& check, int64_t step, double loss, double norm_b = 4, at::Device device = at::kCPU) {
  UpdateNumbers numbers = numbers_of(step, loss, norm_b, device);
  const Tensor norm = optim::global_norm(numbers.gradients), skip = check.judge(std::move(numbers), norm);
  EXPECT_EQ(skip.device().type(), device.type());
  EXPECT_EQ(skip.scalar_type(), at::kFloat);
  return skip.item<float>();
}

TEST(FiniteCheck, TheFlagIsOneWhereTheLossOrTheNormIsNotFinite) {
  FiniteCheck check(0);
  EXPECT_EQ(judged(check, 0, 1), 0);
  EXPECT_EQ(judged(check, 1, kNan), 1);
  EXPECT_EQ(judged(check, 2, -kInf), 1);
  EXPECT_EQ(judged(check, 3, 1, kNan), 1);
  EXPECT_EQ(judged(check, 4, 1, kInf), 1);
  EXPECT_EQ(judged(check, 5, std::numeric_limits<float>::max(), 1e38), 0) << "large is not infinite";
}

TEST(FiniteCheck, CountsInARowAndInAll) {
  FiniteCheck check(0);
  check.set_total(10);
  std::vector<std::vector<int64_t>> seen;
  for (const int64_t step : {0, 1, 2, 3, 4}) {
    judged(check, step, step == 1 || step == 2 || step == 4 ? kNan : 1.0);
    while (const auto skipped = check.next_due(step)) seen.push_back({skipped->step, skipped->in_row, skipped->total});
  }
  EXPECT_EQ(seen, (std::vector<std::vector<int64_t>>{{1, 1, 11}, {2, 2, 12}, {4, 1, 13}}));
  EXPECT_EQ(check.total(), 13);
}

TEST(FiniteCheck, TheHostLagsBehindByItsDelayUntilItMustKnow) {
  FiniteCheck check(2);
  judged(check, 5, kNan);
  EXPECT_FALSE(check.next_due(5));
  judged(check, 6, kNan);
  EXPECT_FALSE(check.next_due(6));
  judged(check, 7, kNan);
  EXPECT_EQ(check.next_due(7)->step, 5);
  EXPECT_FALSE(check.next_due(7));
  EXPECT_EQ(check.total(), 1);
  EXPECT_EQ(check.next_before(8)->step, 6);
  EXPECT_EQ(check.next_before(8)->in_row, 3);
  EXPECT_FALSE(check.next_before(8));
  EXPECT_EQ(check.total(), 3);
}

TEST(FiniteCheck, NamesWhatWasNotFinite) {
  const auto report = [](double loss, double norm_b) {
    return SkippedUpdate{.numbers = numbers_of(0, loss, norm_b)}.report();
  };
  EXPECT_EQ(report(kNan, 4),
            "not finite: loss = nan; gradients of 0 of 2 parameters are not finite; batch: second, third");
  EXPECT_EQ(report(-kInf, kInf),
            "not finite: loss = -inf; gradients of 1 of 2 parameters (b) are not finite; batch: second, third");
  EXPECT_EQ(report(1, kNan),
            "the loss is finite; gradients of 1 of 2 parameters (b) are not finite; batch: first, second, third");
}

TEST(FiniteCheck, ReadsAtOnceOnTheCpuOnly) {
  EXPECT_EQ(FiniteCheck::default_delay(at::kCPU), 0);
  EXPECT_EQ(FiniteCheck::default_delay(at::Device(at::kCUDA, 0)), 1);
  EXPECT_THROW(FiniteCheck(-1), c10::ValueError);
}

TEST(FiniteCheck, OnAGpuTheFlagArrivesLater) {
  if (!at::hasCUDA()) GTEST_SKIP() << "no GPU";
  const at::Device gpu(at::kCUDA, 0);
  FiniteCheck check(1);
  EXPECT_EQ(judged(check, 0, kNan, 4, gpu), 1);
  EXPECT_FALSE(check.next_due(0));
  EXPECT_EQ(judged(check, 1, 1, 4, gpu), 0);
  const auto skipped = check.next_due(1);
  ASSERT_TRUE(skipped);
  EXPECT_EQ(skipped->step, 0);
  EXPECT_THAT(skipped->report(), HasSubstr("loss = nan;"));
  EXPECT_FALSE(check.next_before(2));
}

// ---------------------------------------------------------------------------------------------------------- whole runs

/// A run whose losses are spoilt at the steps `bad`, with the host `delay` steps behind.
void spoilt_run(const DvaeTraining& config, const fs::path& root, const std::set<int64_t>& bad, int64_t delay) {
  DvaeTask task(config, at::kCPU);
  WatchedTask watched(task);
  watched.after_step = [&](int64_t step, StepOutput& output) {
    if (bad.contains(step)) output.loss = output.loss * kNan;
  };
  train_task(watched, config, root, /*resume=*/false, delay);
}

void expect_same_state(const storage::Checkpoint& actual, const storage::Checkpoint& expected) {
  expect_same_tensors(actual.model, expected.model);
  expect_same_tensors(actual.ema, expected.ema);
  expect_same_tensors(actual.optimizer, expected.optimizer);
}

/// Validation, checkpoints and lines of the log fall on different steps, so that flags are read late, and early.
DvaeTraining sparsely_logged(int64_t num_steps) {
  auto config = tiny_vq(num_steps);
  config.trainer.log_interval_steps = 5;
  config.trainer.checkpoint_interval_steps = 8;
  config.trainer.validation_interval_steps = 11;
  config.trainer.health.repeat_steps = 1;  // every skipped update is reported
  return config;
}

TEST(FiniteCheck, AHostThatLagsBehindComputesAndReportsTheSame) {
  const testing::TempDirectory scratch("finite-delay");
  const auto config = sparsely_logged(13);
  const std::set<int64_t> bad{2, 3, 5, 7, 8, 12};
  spoilt_run(config, scratch / "at-once", bad, 0);
  const auto lines = metrics_of(scratch / "at-once");
  ASSERT_EQ(metrics_of(scratch / "at-once", "health").size(), bad.size());
  EXPECT_EQ(storage::load_checkpoint(scratch / "at-once/checkpoints/step-00000008").scalars.at("skipped_updates"), 4);
  for (const int64_t delay : {1, 3}) {
    const fs::path root = scratch / str("delay-", delay);
    spoilt_run(config, root, bad, delay);
    EXPECT_EQ(metrics_of(root), lines) << delay;
    for (const char* name : {"step-00000008", "step-00000013"}) {
      SCOPED_TRACE(str(delay, " ", name));
      const auto actual = storage::load_checkpoint(root / "checkpoints" / name),
                 expected = storage::load_checkpoint(scratch / "at-once/checkpoints" / name);
      expect_same_state(actual, expected);
      EXPECT_EQ(actual.scalars, expected.scalars);
    }
  }
}

TEST(FiniteCheck, SkippedUpdatesLeaveEveryBitAsItWas) {
  const testing::TempDirectory scratch("finite-bits");
  ASSERT_TRUE(train(sparsely_logged(3), scratch / "before"));
  for (const int64_t delay : {0, 1}) {
    const fs::path root = scratch / str("delay-", delay);
    spoilt_run(sparsely_logged(6), root, {3, 4, 5}, delay);
    const auto after = latest(root);
    EXPECT_EQ(after.step, 6);
    expect_same_state(after, latest(scratch / "before"));
    EXPECT_NE(storage::find_tensor(after.model, "quantizer.codebook"), nullptr);
  }
}

TEST(FiniteCheck, ALateEndOfTheRunSpoilsNothingAndCountsAll) {
  const testing::TempDirectory scratch("finite-end");
  auto config = sparsely_logged(30);
  config.trainer.max_nonfinite_steps = 3;
  config.trainer.log_interval_steps = config.trainer.validation_interval_steps = 100;
  config.trainer.checkpoint_interval_steps = 0;
  auto good = config;
  good.trainer.num_steps = 5;
  ASSERT_TRUE(train(good, scratch / "good"));
  std::set<int64_t> bad;
  for (int64_t step = 5; step < 30; ++step) bad.insert(step);
  std::string at_once;
  for (const int64_t delay : {0, 1, 3}) {
    SCOPED_TRACE(delay);
    const fs::path root = scratch / str("delay-", delay);
    const std::string message = message_of<Error>([&] { spoilt_run(config, root, bad, delay); });
    if (delay == 0) at_once = message;
    EXPECT_THAT(message, HasSubstr("step 7"));
    EXPECT_THAT(message, HasSubstr("3 updates in a row"));
    EXPECT_EQ(message, at_once);
    const auto saved = latest(root);
    EXPECT_EQ(saved.step, 7 + delay) << "the update under way is not done";
    EXPECT_EQ(saved.scalars.at("skipped_updates"), static_cast<double>(std::max<int64_t>(3, 2 + delay)));
    expect_same_state(saved, latest(scratch / "good"));
    auto more = config;
    more.trainer.num_steps = saved.step + 2;
    ASSERT_TRUE(train(more, root, /*resume=*/true));
    EXPECT_EQ(latest(root).scalars.at("skipped_updates"), saved.scalars.at("skipped_updates")) << "goes on from there";
  }
}

TEST(FiniteCheck, OnAGpuSkippedUpdatesLeaveTheModelAsItWas) {
  if (!at::hasCUDA()) GTEST_SKIP() << "no GPU";
  const testing::TempDirectory scratch("finite-gpu");
  const auto config = sparsely_logged(6);
  DvaeTask task(config, at::Device(at::kCUDA, 0));
  WatchedTask watched(task);
  std::vector<storage::NamedTensor> before;
  watched.before_step = [&](int64_t step) {
    if (step != 3) return;
    for (const auto& [name, tensor] : models::named_tensors(task.module())) before.push_back({name, tensor.clone()});
  };
  watched.after_step = [&](int64_t step, StepOutput& output) {
    if (step >= 3) output.loss = output.loss * kNan;
  };
  ASSERT_TRUE(train_task(watched, config, scratch / "run"));
  expect_same_tensors(latest(scratch / "run").model, before);
  EXPECT_EQ(metrics_of(scratch / "run", "health").size(), 3U);
}

}  // namespace
}  // namespace dalle::training

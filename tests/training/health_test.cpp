// When a number out of its range becomes a warning, and how often.
#include "dalle/training/health.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

namespace dalle::training {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

const HealthRule kRule{.alarm = "kl_at_zero",
                       .phase = "train",
                       .metric = "kl",
                       .low = 0.05,
                       .high = 5,
                       .meaning = "the codes carry nothing",
                       .remedy = "lower the weight"};

/// Steps at which values, looked at every ten steps from 0 on, give an event.
std::vector<int64_t> events_of(const HealthConfig& config, const std::vector<double>& values,
                               const std::string& phase = "train", const std::string& metric = "kl") {
  HealthMonitor monitor(config, {kRule});
  std::vector<int64_t> steps;
  for (size_t i = 0; i < values.size(); ++i) {
    const auto step = static_cast<int64_t>(10 * i);
    if (!monitor.observe(step, phase, {{"loss", 1.0}, {metric, values[i]}}).empty()) steps.push_back(step);
  }
  return steps;
}

TEST(Health, WarnsOutsideOfTheRangeOnly) {
  const HealthConfig at_once{.grace_steps = 0, .patience_steps = 0};
  EXPECT_THAT(events_of(at_once, {1, 0.05, 5}), ElementsAre());
  EXPECT_THAT(events_of(at_once, {1, 0.04}), ElementsAre(10));
  EXPECT_THAT(events_of(at_once, {1, 5.1}), ElementsAre(10));
}

TEST(Health, LooksAtItsOwnMetricOfItsOwnPhase) {
  const HealthConfig at_once{.grace_steps = 0, .patience_steps = 0};
  EXPECT_THAT(events_of(at_once, {0}, "validation"), ElementsAre());
  EXPECT_THAT(events_of(at_once, {0}, "train", "nll"), ElementsAre());
}

TEST(Health, TheBeginningIsForgiven) {
  const HealthConfig config{.grace_steps = 30, .patience_steps = 0};
  EXPECT_THAT(events_of(config, {0, 0, 0, 1}), ElementsAre());
  EXPECT_THAT(events_of(config, {0, 0, 0, 0}), ElementsAre(30));
}

TEST(Health, ItMustLast) {
  const HealthConfig config{.grace_steps = 20, .patience_steps = 30};
  EXPECT_THAT(events_of(config, {0, 0, 0, 0, 0, 0}), ElementsAre(50)) << "30 steps from the end of the grace on";
  EXPECT_THAT(events_of(config, {0, 0, 0, 0, 1, 0, 0, 0}), ElementsAre()) << "one good look in between";
}

TEST(Health, AWarningIsNotRepeatedEveryStep) {
  const HealthConfig never{.grace_steps = 0, .patience_steps = 0, .repeat_steps = 0};
  EXPECT_THAT(events_of(never, std::vector<double>(20, 0.0)), ElementsAre(0));
  const HealthConfig rarely{.grace_steps = 0, .patience_steps = 0, .repeat_steps = 60};
  EXPECT_THAT(events_of(rarely, std::vector<double>(20, 0.0)), ElementsAre(0, 60, 120, 180));
}

TEST(Health, AFailureThatComesBackIsANewOne) {
  const HealthConfig config{.grace_steps = 0, .patience_steps = 20, .repeat_steps = 0};
  EXPECT_THAT(events_of(config, {0, 0, 0, 0, 1, 0, 0, 0, 0}), ElementsAre(20, 70));
}

TEST(Health, TheMessageSaysWhatAndSinceWhenAndWhatToDo) {
  HealthMonitor monitor({.grace_steps = 0, .patience_steps = 100}, {kRule});
  ASSERT_TRUE(monitor.observe(100, "train", {{"kl", 0.001}}).empty());
  const auto events = monitor.observe(200, "train", {{"kl", 0.002}});
  ASSERT_EQ(events.size(), 1U);
  EXPECT_EQ(events[0].alarm, "kl_at_zero");
  EXPECT_EQ(
      events[0].message,
      "step 200: train kl is 0.002, below 0.05 since step 100: the codes carry nothing\n  hint: lower the weight");
  EXPECT_EQ(events[0].values, (NamedValues{{"kl", 0.002}, {"bound", 0.05}}));
}

TEST(Health, NumbersThatAreNotFiniteAreAnotherAlarms) {
  const HealthConfig at_once{.grace_steps = 0, .patience_steps = 0};
  EXPECT_THAT(events_of(at_once, {NAN}), ElementsAre());
}

TEST(Health, WarningsWithoutARangeAreRationedToo) {
  HealthMonitor monitor({.repeat_steps = 100}, {});
  EXPECT_TRUE(monitor.may_warn("nonfinite", 5));
  EXPECT_FALSE(monitor.may_warn("nonfinite", 104));
  EXPECT_TRUE(monitor.may_warn("other", 104));
  EXPECT_TRUE(monitor.may_warn("nonfinite", 105));
  EXPECT_FALSE(monitor.may_warn("nonfinite", 106));
}

}  // namespace
}  // namespace dalle::training

// The learning rate of a run: events of listed and plateau halvings, what is refused.
#include "dalle/training/learning_rate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dalle/core/error.h"
#include "support/thrown_message.h"

namespace dalle::training {
namespace {

using ::testing::HasSubstr;

const optim::ScheduleConfig kHalving{.type = optim::ScheduleType::kWarmupHalving,
                                     .start = 8,
                                     .warmup_steps = 4,
                                     .halve_at = {10, 30},
                                     .plateau = {.metric = "image_loss", .patience_steps = 10}};

TEST(LearningRate, AListedHalvingIsAnEventAtItsStepOnly) {
  const LearningRate rate(kHalving);
  for (int64_t step = 0; step < 40; ++step) {
    const auto event = rate.listed_halving(step);
    ASSERT_EQ(event.has_value(), step == 10 || step == 30) << step;
    if (!event) continue;
    EXPECT_EQ(event->event, "halved");
    EXPECT_EQ(event->cause, "halve_at");
    EXPECT_EQ(event->values, (NamedValues{{"before", rate.at(step - 1)}, {"learning_rate", rate.at(step)}}));
  }
  EXPECT_THAT(rate.listed_halving(10)->message, HasSubstr("step 10: the learning rate is halved, 8 -> 4"));
}

TEST(LearningRate, APlateauHalvesFromTheNextUpdateOn) {
  LearningRate rate(kHalving);
  EXPECT_FALSE(rate.observe(2, {{"image_loss", 0.1}})) << "validation during the warm-up is no measure";
  EXPECT_FALSE(rate.observe(5, {{"text_loss", 9}, {"image_loss", 5}}));
  EXPECT_FALSE(rate.observe(10, {{"image_loss", 6}}));
  EXPECT_EQ(rate.at(14), 4);
  EXPECT_FALSE(rate.observe(15, {{"image_loss", 5.5}})) << "halve_at has just halved it";
  const auto event = rate.observe(20, {{"image_loss", 5.5}});
  ASSERT_TRUE(event);
  EXPECT_EQ(event->cause, "plateau");
  EXPECT_EQ(event->values, (NamedValues{{"before", 4}, {"learning_rate", 2}}));
  EXPECT_THAT(event->message, HasSubstr("image_loss has not improved since step 10"));
  EXPECT_EQ(rate.at(20), 2);
  EXPECT_EQ(rate.num_halvings(20), 2);
  LearningRate resumed(kHalving);
  resumed.load_state(rate.state());
  EXPECT_EQ(resumed.at(20), 2);
}

TEST(LearningRate, ListedHalvingsCountTowardsTheMost) {
  auto config = kHalving;
  config.plateau.max_halvings = 2;
  LearningRate rate(config);
  rate.observe(5, {{"image_loss", 5}});
  EXPECT_TRUE(rate.observe(20, {{"image_loss", 6}}));
  EXPECT_FALSE(rate.observe(29, {{"image_loss", 6}})) << "two by now";
  EXPECT_EQ(rate.at(30), 1) << "a list is followed to its end";
  EXPECT_FALSE(rate.observe(60, {{"image_loss", 6}}));
}

TEST(LearningRate, AnUnknownMetricIsNamedWithTheKnown) {
  const LearningRate rate(kHalving);
  rate.require_metric({"loss", "image_loss"});
  LearningRate({.type = optim::ScheduleType::kConstant}).require_metric({});
  EXPECT_THAT(testing::message_of<ConfigError>([&] {
                rate.require_metric({"loss", "text_loss"});
              }),
              HasSubstr("learning_rate.plateau.metric: expected one of: loss, text_loss, got 'image_loss'"));
  EXPECT_THAT(testing::message_of<ConfigError>([&] { rate.require_metric({}); }), HasSubstr("validation.sources"));
}

TEST(LearningRate, OtherSchedulesHaveNoHalvings) {
  LearningRate rate({.type = optim::ScheduleType::kCosine, .start = 1, .end = 0.1, .steps = 100});
  EXPECT_FALSE(rate.watches_validation());
  EXPECT_FALSE(rate.num_halvings(50));
  EXPECT_FALSE(rate.listed_halving(50));
  EXPECT_FALSE(rate.observe(50, {{"image_loss", 3}}));
}

}  // namespace
}  // namespace dalle::training

#include "dalle/optim/schedule.h"

#include <gtest/gtest.h>

#include "dalle/config/fields.h"

namespace dalle::optim {
namespace {

TEST(Schedule, GoldenNumbersOfTheDvae) {
  EXPECT_DOUBLE_EQ(cosine(0, 6.6, 5000, 2500), 3.3);
  EXPECT_DOUBLE_EQ(cosine(1, 1.0 / 16, 150'000, 75'000), 0.53125);
  EXPECT_DOUBLE_EQ(cosine(1e-4, 1.25e-6, 1'200'000, 600'000), 5.0625e-5);
  EXPECT_EQ(cosine(1e-4, 1.25e-6, 1'200'000, 1'200'000), 1.25e-6);
  EXPECT_EQ(cosine(1e-4, 1.25e-6, 1'200'000, 3'000'000), 1.25e-6);
  EXPECT_EQ(cosine(1e-4, 1.25e-6, 1'200'000, 0), 1e-4);
  EXPECT_DOUBLE_EQ(cosine(0, 1, 3, 1), 0.25);  // cos(pi / 3) = 1/2
  EXPECT_EQ(cosine(5, 7, 0, 0), 7);
}

TEST(Schedule, CosineFallsMonotonically) {
  double before = 2;
  for (int64_t step = 0; step <= 100; ++step) {
    const double now = cosine(1, 0.0625, 100, step);
    EXPECT_LT(now, before);
    before = now;
  }
}

TEST(Schedule, ThePriorsWarmUpAndHalvings) {
  const ScheduleConfig lr{.type = ScheduleType::kWarmupHalving,
                          .start = 4.5e-4,
                          .warmup_steps = 5000,
                          .halve_at = {100'000, 200'000, 300'000, 350'000, 400'000}};
  EXPECT_EQ(value(lr, 0), 0);
  EXPECT_DOUBLE_EQ(value(lr, 1), 9e-8);
  EXPECT_DOUBLE_EQ(value(lr, 2500), 2.25e-4);
  EXPECT_EQ(value(lr, 5000), 4.5e-4);
  EXPECT_EQ(value(lr, 99'999), 4.5e-4);
  EXPECT_EQ(value(lr, 100'000), 2.25e-4);
  EXPECT_DOUBLE_EQ(value(lr, 430'000), 1.40625e-5);  // 4.5e-4 / 32
}

TEST(Schedule, HalvingsOfAPlateauComeOnTopOfTheListed) {
  const ScheduleConfig lr{.type = ScheduleType::kWarmupHalving,
                          .start = 8,
                          .warmup_steps = 2,
                          .halve_at = {10},
                          .plateau = {.patience_steps = 5}};
  EXPECT_EQ(value(lr, 1, 1), 4) << "the warm-up rises to the start; halvings begin after it";
  EXPECT_EQ(value(lr, 9, 0), 8);
  EXPECT_EQ(value(lr, 9, 2), 2);
  EXPECT_EQ(value(lr, 10, 2), 1);
  EXPECT_EQ(num_halvings(lr, 9, 2), 2);
  EXPECT_EQ(num_halvings(lr, 10, 2), 3);
  EXPECT_EQ(num_halvings({.start = 1}, 10, 2), 0);
  EXPECT_EQ(value({.start = 1}, 10, 2), 1);
}

TEST(Schedule, ConstantAndCosineTakeAWarmUp) {
  const ScheduleConfig constant{.start = 3, .end = 9, .warmup_steps = 4};
  EXPECT_DOUBLE_EQ(value(constant, 1), 0.75);
  EXPECT_EQ(value(constant, 4), 3);
  EXPECT_EQ(value(constant, 1'000'000), 3);
  const ScheduleConfig falling{.type = ScheduleType::kCosine, .start = 1, .end = 0.5, .steps = 10, .warmup_steps = 4};
  EXPECT_DOUBLE_EQ(value(falling, 2), 0.5);
  EXPECT_EQ(value(falling, 4), 1);
  EXPECT_DOUBLE_EQ(value(falling, 9), 0.75);
  EXPECT_EQ(value(falling, 14), 0.5);
  const ScheduleConfig plain{.type = ScheduleType::kCosine, .start = 1, .end = 0.0625, .steps = 150'000};
  EXPECT_EQ(value(plain, 0), 1);
  EXPECT_DOUBLE_EQ(value(plain, 75'000), 0.53125);
}

TEST(Schedule, LoadsFromYamlAndChecksHalvings) {
  const auto config = config::load_config<ScheduleConfig>(
      config::parse_yaml("{type: warmup_halving, start: 1.0, warmup_steps: 5, halve_at: [10, 20]}", "x.yaml"));
  EXPECT_EQ(value(config, 20), 0.25);
  const auto load = [](const std::string& yaml) {
    return config::load_config<ScheduleConfig>(config::parse_yaml(yaml, "x.yaml"));
  };
  EXPECT_THROW(load("{type: warmup_halving, halve_at: [20, 20]}"), ConfigError);
  EXPECT_THROW(load("{type: cosine, halve_at: [20]}"), ConfigError);
  EXPECT_THROW(load("{type: warmup_halving, warmup_steps: 30, halve_at: [20]}"), ConfigError);
  EXPECT_THROW(load("{plateau: {patience_steps: 20}}"), ConfigError);
  EXPECT_EQ(load("{type: warmup_halving, plateau: {patience_steps: 20}}").plateau.patience_steps, 20);
  EXPECT_THROW(config::load_config<ScheduleConfig>(config::parse_yaml("type: linear", "x.yaml")), ConfigError);
  for (const auto& row : config::describe<ScheduleConfig>()) EXPECT_TRUE(row.changeable) << row.path;
}

}  // namespace
}  // namespace dalle::optim

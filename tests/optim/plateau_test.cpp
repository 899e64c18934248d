// The plateau detector: when it halves, when it does not, and that its state is all of it.
#include "dalle/optim/plateau.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

namespace dalle::optim {
namespace {

/// Steps (100, 200, ...) at which a detector halves over these values.
std::vector<int64_t> halvings(Plateau& plateau, const std::vector<double>& values, int64_t first_step = 100) {
  std::vector<int64_t> steps;
  for (size_t i = 0; i < values.size(); ++i) {
    const int64_t step = first_step + 100 * static_cast<int64_t>(i);
    if (plateau.observe(step, values[i])) steps.push_back(step);
  }
  return steps;
}

using Steps = std::vector<int64_t>;

TEST(Plateau, HalvesAfterItsPatienceAndAgainAfterAsLong) {
  Plateau plateau({.patience_steps = 200});
  EXPECT_EQ(halvings(plateau, {3, 2, 2.5, 2.2, 2.1, 2.1, 2, 1.9, 2, 2}), (Steps{400, 600, 1000}));
  EXPECT_EQ(plateau.num_halvings(), 3);
}

TEST(Plateau, AFallingNumberNeverHalves) {
  Plateau plateau({.patience_steps = 100});
  std::vector<double> falling;
  for (int i = 0; i < 50; ++i) falling.push_back(1.0 / (i + 1));
  EXPECT_EQ(halvings(plateau, falling), Steps{});
}

TEST(Plateau, ASmallFallCountsOnlyWhereItIsLargeEnough) {
  const std::vector<double> slow{2, 1.99, 1.98, 1.97, 1.96};
  Plateau any({.patience_steps = 200}), large({.patience_steps = 200, .min_improvement = 0.015});
  EXPECT_EQ(halvings(any, slow), Steps{});
  // 1.98 is 0.02 below 2; 1.96 is 0.02 below 1.98.
  EXPECT_EQ(halvings(large, slow), Steps{});
  Plateau larger({.patience_steps = 200, .min_improvement = 0.1});
  EXPECT_EQ(halvings(larger, slow), (Steps{300, 500}));
}

TEST(Plateau, StopsAtItsLimit) {
  Plateau plateau({.patience_steps = 100, .max_halvings = 2});
  EXPECT_EQ(halvings(plateau, {1, 1, 1, 1, 1, 1}), (Steps{200, 300}));
}

TEST(Plateau, OffByDefault) {
  Plateau plateau({});
  EXPECT_EQ(halvings(plateau, {1, 1, 1, 1, 1, 1}), Steps{});
  EXPECT_TRUE(plateau.state().empty());
}

TEST(Plateau, WhatIsNotFiniteIsNoImprovement) {
  const double nan = std::numeric_limits<double>::quiet_NaN(), inf = std::numeric_limits<double>::infinity();
  Plateau plateau({.patience_steps = 200});
  EXPECT_EQ(halvings(plateau, {nan, inf, nan}), Steps{}) << "nothing to compare with yet";
  EXPECT_EQ(halvings(plateau, {1, nan, -inf, nan}, 400), (Steps{600}));
}

TEST(Plateau, AnotherMetricIsWatchedFromAnew) {
  Plateau text({.metric = "text_loss", .patience_steps = 200});
  EXPECT_EQ(halvings(text, {2, 2, 2}), (Steps{300}));
  Plateau image({.metric = "image_loss", .patience_steps = 200});
  image.load_state(text.state());
  EXPECT_EQ(image.num_halvings(), 1);
  Plateau again({.metric = "image_loss", .patience_steps = 200});
  again.load_state(image.state());
  EXPECT_EQ(again.num_halvings(), 1) << "also where nothing was seen in between";
  EXPECT_EQ(halvings(again, {5, 4, 4, 4}, 400), (Steps{700})) << "5 is no worse than the 2 of another number";
  EXPECT_EQ(again.num_halvings(), 2);
}

TEST(Plateau, GoesOnFromItsState) {
  const std::vector<double> values{3, 2, 2.5, 2.2, 2.1, 2.1, 2, 1.9, 2, 2};
  Plateau whole({.patience_steps = 200});
  const Steps expected = halvings(whole, values);
  for (size_t cut = 0; cut <= values.size(); ++cut) {
    Plateau before({.patience_steps = 200}), after({.patience_steps = 200});
    Steps steps = halvings(before, {values.begin(), values.begin() + static_cast<int64_t>(cut)});
    after.load_state(before.state());
    for (const int64_t step : halvings(after, {values.begin() + static_cast<int64_t>(cut), values.end()},
                                       100 * (static_cast<int64_t>(cut) + 1))) {
      steps.push_back(step);
    }
    EXPECT_EQ(steps, expected) << cut;
    EXPECT_EQ(after.state(), whole.state());
  }
}

}  // namespace
}  // namespace dalle::optim

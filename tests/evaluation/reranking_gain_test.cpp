#include "dalle/evaluation/reranking_gain.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <cmath>

#include "dalle/core/random.h"

namespace dalle::evaluation {
namespace {

TEST(RerankingGain, IsThatOfTheFirstOverTheMeanOfAll) {
  const auto result = reranking_gain({{5, 1, 3}, {2, 2, 2}, {0, 3, 3}});  // gains 2, 0, -2
  EXPECT_DOUBLE_EQ(result.best, 7.0 / 3);
  EXPECT_DOUBLE_EQ(result.random, 7.0 / 3);
  EXPECT_NEAR(result.gain, 0, 1e-15);
  EXPECT_DOUBLE_EQ(result.standard_error, 2 / std::sqrt(3.0));
  EXPECT_FALSE(result.is_significant());
  const auto shifted = reranking_gain({{8, 1, 3}, {5, 2, 2}, {3, 3, 3}});  // gains 4, 2, 0
  EXPECT_DOUBLE_EQ(shifted.gain, 2);
  EXPECT_DOUBLE_EQ(shifted.gain, shifted.best - shifted.random);
  EXPECT_DOUBLE_EQ(shifted.standard_error, 2 / std::sqrt(3.0));
  EXPECT_FALSE(shifted.is_significant()) << "2 < 2.3";
}

TEST(RerankingGain, TwoStandardErrorsAreTheBar) {
  EXPECT_TRUE(reranking_gain({{3, 0}, {4, 0}, {3, 0}, {4, 0}}).is_significant());
  EXPECT_FALSE(reranking_gain({{0, 3}, {0, 4}, {0, 3}, {0, 4}}).is_significant()) << "a loss";
  EXPECT_TRUE(reranking_gain({{1, 0}, {1, 0}}).is_significant()) << "no spread at all";
  EXPECT_FALSE(reranking_gain({{1, 1}, {0, 0}}).is_significant()) << "nothing gained";
  EXPECT_FALSE(reranking_gain({{9, 0}}).is_significant()) << "one caption says nothing of its spread";
}

TEST(RerankingGain, ARankingThatIsBlindGainsNothing) {
  const std::vector<RandomKey> key{random_key(3, Purpose::kEvaluation)};
  const Tensor numbers = uniform_rows(key, 400 * 8, at::kCPU).to(at::kDouble).contiguous();
  const double* next = numbers.const_data_ptr<double>();
  std::vector<std::vector<double>> judged;
  for (int c = 0; c < 400; ++c, next += 8) judged.emplace_back(next, next + 8);
  const auto blind = reranking_gain(judged);
  EXPECT_LT(std::abs(blind.gain), 3 * blind.standard_error);
  // Var(first - mean of 8) = (1 - 1 / 8) / 12 for numbers in [0, 1).
  EXPECT_NEAR(blind.standard_error, std::sqrt(7.0 / 8 / 12 / 400), 0.001);
}

TEST(RerankingGain, RefusesWhatHoldsNothing) {
  EXPECT_THROW(reranking_gain({}), c10::ValueError);
  EXPECT_THROW(reranking_gain({{1, 2}, {}}), c10::ValueError);
}

}  // namespace
}  // namespace dalle::evaluation

#include "dalle/evaluation/code_usage.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

namespace dalle::evaluation {
namespace {

TEST(CodeUsage, CountsOverSeveralBatches) {
  CodeUsage usage(8);
  EXPECT_EQ(usage.total(), 0);
  EXPECT_EQ(usage.num_used(), 0);
  EXPECT_EQ(usage.share_used(), 0);
  usage.add(at::tensor({0, 0, 3, 3}, at::kLong).view({1, 2, 2}));
  EXPECT_EQ(usage.num_used(), 2);
  usage.add(at::tensor({7, 7, 7, 0}, at::kLong).view({1, 2, 2}));
  EXPECT_EQ(usage.total(), 8);
  EXPECT_EQ(usage.num_used(), 3);
  EXPECT_EQ(usage.share_used(), 3.0 / 8);
  const double entropy = -(2 * 0.375 * std::log(0.375) + 0.25 * std::log(0.25));
  EXPECT_NEAR(usage.perplexity(), std::exp(entropy), 1e-12);
}

TEST(CodeUsage, PerplexityRunsFromOneToTheVocabulary) {
  CodeUsage one(100), all(100);
  one.add(at::full({4, 8, 8}, 42, at::kLong));
  all.add(at::arange(100, at::kLong).repeat({3}));
  EXPECT_NEAR(one.perplexity(), 1, 1e-12);
  EXPECT_NEAR(all.perplexity(), 100, 1e-9);
  EXPECT_EQ(all.share_used(), 1);
}

TEST(CodeUsage, CodesOutsideTheVocabularyAreErrors) {
  CodeUsage usage(4);
  EXPECT_THROW(usage.add(at::tensor({4}, at::kLong)), c10::Error);
  EXPECT_THROW(usage.add(at::tensor({-1}, at::kLong)), c10::Error);
}

}  // namespace
}  // namespace dalle::evaluation

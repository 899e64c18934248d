// Temperature, top-k and top-p against sorting each row by hand.
#include "dalle/generation/logits_filter.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "dalle/core/random.h"
#include "support/tensor_matchers.h"

namespace dalle::generation {
namespace {

using testing::bitwise_equal;
using testing::close_to;

constexpr double kNever = -INFINITY;

/// One row: scale, drop what is below the k-th value, then keep the most probable until their mass reaches top_p.
std::vector<double> slow_filter(std::vector<double> row, const FilterOptions& options) {
  for (double& x : row) x /= options.temperature;
  std::vector<double> sorted = row;
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  if (options.top_k > 0 && options.top_k < static_cast<int64_t>(row.size())) {
    const double kth = sorted[static_cast<size_t>(options.top_k) - 1];
    for (double& x : row) x = x < kth ? kNever : x;
  }
  if (options.top_p >= 1) return row;
  double total = 0, mass = 0, smallest_kept = 0;
  for (const double x : row) total += std::exp(x);
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  for (const double x : sorted) {
    smallest_kept = x;
    mass += std::exp(x) / total;
    if (mass >= options.top_p) break;
  }
  for (double& x : row) x = x < smallest_kept ? kNever : x;
  return row;
}

Tensor slow_filter(const Tensor& logits, const FilterOptions& options) {
  Tensor out = logits.clone();
  for (int64_t b = 0; b < logits.size(0); ++b) {
    const double* row = logits[b].const_data_ptr<double>();
    const auto kept = slow_filter(std::vector<double>(row, row + logits.size(1)), options);
    out[b].copy_(at::tensor(kept, at::kDouble));
  }
  return out;
}

Tensor random_logits(int64_t rows, int64_t vocab, uint64_t seed) {
  return normal(random_key(seed, Purpose::kEvaluation), rows * vocab).view({rows, vocab}).to(at::kDouble) * 2;
}

Tensor row(std::initializer_list<double> values) { return at::tensor(values, at::kDouble).unsqueeze(0); }

TEST(LogitsFilter, EqualsTheSlowReference) {
  for (const int64_t vocab : {1, 2, 5, 33}) {
    for (const double temperature : {1.0, 0.3, 2.5}) {
      for (const int64_t top_k : {0, 1, 2, 4, 33, 100}) {
        for (const double top_p : {1.0, 0.95, 0.5, 0.1, 1e-6}) {
          const FilterOptions options{temperature, top_k, top_p};
          const Tensor logits = random_logits(6, vocab, static_cast<uint64_t>(vocab));
          const Tensor expected = slow_filter(logits, options), got = filter_logits(logits, options);
          EXPECT_TRUE(at::equal(got.isneginf(), expected.isneginf()))
              << vocab << " " << temperature << " " << top_k << " " << top_p;
          EXPECT_TRUE(close_to(got.exp(), expected.exp(), 1e-14));
        }
      }
    }
  }
}

TEST(LogitsFilter, DefaultsChangeNothing) {
  const Tensor logits = random_logits(3, 9, 0);
  EXPECT_TRUE(bitwise_equal(filter_logits(logits, {}), logits));
}

TEST(LogitsFilter, TheInputIsNotTouched) {
  const Tensor logits = random_logits(3, 9, 0), before = logits.clone();
  filter_logits(logits, {.temperature = 0.5, .top_k = 2, .top_p = 0.5});
  EXPECT_TRUE(bitwise_equal(logits, before));
}

TEST(LogitsFilter, TopKKeepsTies) {
  EXPECT_TRUE(at::equal(filter_logits(row({3, 1, 2, 2, 2}), {.top_k = 2}), row({3, kNever, 2, 2, 2})));
  EXPECT_TRUE(at::equal(filter_logits(row({1, 1, 1}), {.top_k = 1}), row({1, 1, 1})));
}

TEST(LogitsFilter, TopPKeepsTheSmallestSetThatReachesTheMass) {
  const Tensor logits = row({0.125, 0.5, 0.25, 0.125}).log();
  const auto kept = [&](double top_p) {
    std::vector<int64_t> codes;
    const Tensor filtered = filter_logits(logits, {.top_p = top_p});
    for (int64_t code = 0; code < 4; ++code) {
      if (std::isfinite(filtered[0][code].item<double>())) codes.push_back(code);
    }
    return codes;
  };
  EXPECT_THAT(kept(0.01), ::testing::ElementsAre(1));
  EXPECT_THAT(kept(0.49), ::testing::ElementsAre(1));
  EXPECT_THAT(kept(0.51), ::testing::ElementsAre(1, 2));
  EXPECT_THAT(kept(0.74), ::testing::ElementsAre(1, 2));
  EXPECT_EQ(kept(0.8).size(), 3U);  // one of the two that tie
  EXPECT_EQ(kept(0.99).size(), 4U);
}

TEST(LogitsFilter, TopPCountsTheMassAfterTopKAndTemperature) {
  const Tensor logits = row({0.4, 0.3, 0.2, 0.1}).log();
  // Among the two best, 4/7 and 3/7: the first alone reaches 0.55.
  EXPECT_EQ(filter_logits(logits, {.top_k = 2, .top_p = 0.55}).isfinite().sum().item<int64_t>(), 1);
  EXPECT_EQ(filter_logits(logits, {.top_p = 0.55}).isfinite().sum().item<int64_t>(), 2);
  EXPECT_EQ(filter_logits(logits, {.temperature = 0.1, .top_p = 0.55}).isfinite().sum().item<int64_t>(), 1);
}

TEST(LogitsFilter, RowsAreIndependentAndTypesKept) {
  const Tensor logits = random_logits(4, 20, 3).to(at::kFloat);
  const FilterOptions options{.temperature = 0.7, .top_k = 7, .top_p = 0.8};
  const Tensor all = filter_logits(logits, options);
  EXPECT_EQ(all.scalar_type(), at::kFloat);
  for (int64_t b = 0; b < 4; ++b) {
    EXPECT_TRUE(bitwise_equal(filter_logits(logits.slice(0, b, b + 1), options), all.slice(0, b, b + 1))) << b;
  }
}

}  // namespace
}  // namespace dalle::generation

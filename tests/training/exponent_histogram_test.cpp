#include "dalle/training/exponent_histogram.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>

#include "dalle/core/files.h"
#include "support/temp_directory.h"
#include "support/thread_ranks.h"

namespace dalle::training {
namespace {

std::vector<nlohmann::json> lines_of(const std::filesystem::path& file) {
  std::istringstream text(read_file(file));
  std::vector<nlohmann::json> lines;
  for (std::string line; std::getline(text, line);) lines.push_back(nlohmann::json::parse(line));
  return lines;
}

TEST(ExponentHistogram, CountsFloorsOfLogarithmsZerosAndWhatIsNotFinite) {
  const testing::TempDirectory scratch("exponents");
  ExponentHistogram histogram({"first", "second"}, at::kCPU);
  const float largest = std::numeric_limits<float>::max(), smallest = std::numeric_limits<float>::denorm_min();
  histogram.add(ExponentHistogram::kParameters, 1, at::tensor({1.0f, 1.99f, -2.0f, 0.5f}).view({2, 2}));
  histogram.add(ExponentHistogram::kParameters, 1, at::tensor({-0.0f, INFINITY, -INFINITY, NAN, 8.0f}));
  histogram.add(ExponentHistogram::kActivations, 0, at::tensor({largest, smallest, 0x1p-126f, 3 * smallest}));
  histogram.write(scratch / "exponents.jsonl", 7, at::tensor({13.0, 24.0}, at::kDouble));
  const auto lines = lines_of(scratch / "exponents.jsonl");
  ASSERT_EQ(lines.size(), 4U);
  const auto& extremes = lines[0];
  EXPECT_EQ(extremes["block"], "first");
  EXPECT_EQ(extremes["gradients"], "activations");
  EXPECT_EQ(extremes["first_exponent"], -149);
  ASSERT_EQ(extremes["counts"].size(), 277U);
  EXPECT_EQ(extremes["counts"][0], 1);
  EXPECT_EQ(extremes["counts"][1], 1);
  EXPECT_EQ(extremes["counts"][149 - 126], 1);
  EXPECT_EQ(extremes["counts"][276], 1);
  EXPECT_EQ(lines[1]["counts"].size(), 0U);
  EXPECT_EQ(lines[3], nlohmann::json::parse(R"({"step": 7, "block": "second", "gradients": "parameters",
      "scale_log2": 24.0, "zeros": 1, "not_finite": 3, "first_exponent": -1, "counts": [1, 2, 1, 0, 1]})"));
}

TEST(ExponentHistogram, RanksAddUp) {
  const testing::TempDirectory scratch("exponents-ranks");
  testing::run_thread_ranks(2, [&](testing::ThreadRank& rank) {
    ExponentHistogram histogram({"only"}, at::kCPU);
    histogram.add(ExponentHistogram::kActivations, 0, at::full({3}, rank.rank() == 0 ? 1.0f : 4.0f));
    histogram.add_ranks(rank);
    if (rank.rank() == 0) histogram.write(scratch / "exponents.jsonl", 1, at::zeros({1}, at::kDouble));
  });
  EXPECT_EQ(lines_of(scratch / "exponents.jsonl")[0]["counts"], nlohmann::json({3, 0, 3}));
}

}  // namespace
}  // namespace dalle::training

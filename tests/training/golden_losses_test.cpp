// Committed loss curves of tiny runs: what a change to the training maths shows up in. tests/golden/losses/README.md
// says how to write them anew.
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <iomanip>

#include "support/golden.h"
#include "training/tiny_runs.h"

namespace dalle::training {
namespace {

constexpr int64_t kSteps = 50;

std::string as_text(const std::vector<double>& losses) {
  std::ostringstream out;
  for (size_t i = 0; i < losses.size(); ++i) out << i + 1 << " " << std::setprecision(9) << losses[i] << "\n";
  return out.str();
}

template <class Config>
void expect_golden_curve(const Config& config, const std::string& name) {
  const testing::TempDirectory scratch("golden-" + name);
  ASSERT_TRUE(train(config, scratch / "run"));
  const auto losses = train_values(scratch / "run", "loss");
  ASSERT_EQ(losses.size(), static_cast<size_t>(kSteps));
  const auto file = testing::golden_path("losses/" + name + ".txt");
  if (std::getenv("DALLE_WRITE_GOLDEN_LOSSES") != nullptr) {
    write_file(file, as_text(losses));
    GTEST_SKIP() << "written: " << file;
  }
  std::istringstream text(read_file(file));
  double largest = 0;
  std::vector<double> golden;
  for (double step = 0, loss = 0; text >> step >> loss;) {
    golden.push_back(loss);
    largest = std::max(largest, std::abs(loss));
  }
  ASSERT_EQ(golden.size(), losses.size());
  for (size_t i = 0; i < golden.size(); ++i) EXPECT_NEAR(losses[i], golden[i], 1e-4 * largest) << "step " << i + 1;
}

TEST(GoldenLosses, TheDvae) {
  auto config = tiny_dvae(kSteps);
  config.validation.sources.clear();
  expect_golden_curve(config, "dvae");
}

TEST(GoldenLosses, ThePrior) {
  auto config = tiny_prior(kSteps);
  config.validation.sources.clear();
  expect_golden_curve(config, "prior");
}

}  // namespace
}  // namespace dalle::training

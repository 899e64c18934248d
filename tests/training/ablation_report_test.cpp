// The ablations' table: means and spreads of the last validation, nats that can be compared, runs that are not done.
#include "dalle/training/ablation_report.h"

#include <gmock/gmock.h>

#include <cmath>

#include "training/tiny_runs.h"

namespace dalle::training {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(AblationReport, ReadsVariants) {
  const testing::TempDirectory scratch("variants");
  write_file(scratch / "v.txt", "# head\n\n  one | as it is |\ntwo | b and c | a.b=1  c.d=[2] # why\n");
  const auto variants = read_variants(scratch / "v.txt");
  ASSERT_EQ(variants.size(), 2U);
  EXPECT_EQ(variants[0].name, "one");
  EXPECT_EQ(variants[0].description, "as it is");
  EXPECT_TRUE(variants[0].assignments.empty());
  EXPECT_THAT(variants[1].assignments, ElementsAre("a.b=1", "c.d=[2]"));
  write_file(scratch / "v.txt", "one | as it is |\ntwo a.b=1\n");
  EXPECT_THAT(message_of<ConfigError>([&] { read_variants(scratch / "v.txt"); }), HasSubstr("v.txt:2"));
}

TEST(AblationReport, TabulatesTheLastValidationOfFinishedRuns) {
  const testing::TempDirectory scratch("ablations");
  auto config = tiny_dvae(2);
  config.trainer.validation_interval_steps = 1;
  std::vector<double> psnr;
  for (const int64_t seed : {0, 1}) {
    config.trainer.seed = seed;
    const fs::path run = scratch / str("base-seed", seed);
    ASSERT_TRUE(train(config, run));
    psnr.push_back(metrics_of(run, "validation").back()["psnr"]);
  }
  auto other = tiny_dvae(2);
  other.model.likelihood = layers::Likelihood::kLaplace;
  ASSERT_TRUE(train(other, scratch / "l1-seed0"));
  // Stopped before its last step: a validation line, but not the last one.
  ASSERT_TRUE(train(config, scratch / "l1-seed1"));
  std::string metrics = read_file(scratch / "l1-seed1/metrics.jsonl");
  write_file(scratch / "l1-seed1/metrics.jsonl", metrics.substr(0, metrics.find("{\"step\":2")));

  write_file(scratch / "v.txt", "base | the base |\nl1 | Laplace |\nnever | not run |\n");
  const AblationReportOptions options{.runs = scratch.path(),
                                      .variants = scratch / "v.txt",
                                      .seeds = 2,
                                      .table = scratch / "table.md",
                                      .picture = scratch / "sheet.png",
                                      .pictures = 3};
  const std::string table = make_ablation_report(options);
  EXPECT_EQ(read_file(scratch / "table.md"), table);
  EXPECT_TRUE(fs::exists(scratch / "sheet.png"));
  char expected[64];
  const double mean = (psnr[0] + psnr[1]) / 2, spread = std::abs(psnr[0] - psnr[1]) / std::sqrt(2.0);
  std::snprintf(expected, sizeof expected, "| `base` | the base | 2 | %.2f ± %.2f |", mean, spread);
  EXPECT_THAT(table, HasSubstr(expected));
  EXPECT_THAT(table, HasSubstr("| `l1` | Laplace | 1 | "));
  EXPECT_THAT(table, ::testing::Not(HasSubstr("never")));
  // Nats over pixels for both: only the logit-Laplace's are moved by -ln 0.8.
  const auto nats = [&](const char* run, double shift) {
    char text[32];
    std::snprintf(text, sizeof text, " %.3f |",
                  metrics_of(scratch / run, "validation").back()["elb_hard"].get<double>() + shift);
    return std::string(text);
  };
  EXPECT_THAT(table, HasSubstr(nats("l1-seed0", 0)));
  AblationReportOptions one_seed = options;
  one_seed.seeds = 1;
  EXPECT_THAT(make_ablation_report(one_seed), HasSubstr(nats("base-seed0", -std::log(0.8))));
}

TEST(AblationReport, WithoutAnyRunThereIsNoTable) {
  const testing::TempDirectory scratch("no-ablations");
  write_file(scratch / "v.txt", "base | the base |\n");
  EXPECT_THROW(make_ablation_report({.runs = scratch.path(), .variants = scratch / "v.txt"}), DataError);
}

}  // namespace
}  // namespace dalle::training

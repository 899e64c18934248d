// The dVAE's alarms: their bounds, and that the remedies name this config's values. That real failures raise them and a
// healthy run does not is in dvae_failures_test.cpp.
#include "dalle/training/dvae_health.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "dalle/config/fields.h"

namespace dalle::training {
namespace {

using ::testing::HasSubstr;

const HealthRule* find(const std::vector<HealthRule>& rules, const std::string& alarm, const std::string& phase) {
  for (const auto& rule : rules) {
    if (rule.alarm == alarm && rule.phase == phase) return &rule;
  }
  return nullptr;
}

DvaeTraining paper() {
  return config::load_config_file<DvaeTraining>(std::filesystem::path(DALLE_SOURCE_DIR) / "configs/paper/dvae.yaml");
}

TEST(DvaeHealth, BoundsAreSharesOfWhatIsPossible) {
  auto config = paper();
  config.health = {.min_kl_share = 0.02, .max_kl_share = 0.8, .min_perplexity_share = 0.1};
  const auto rules = dvae_health_rules(config);
  EXPECT_NEAR(find(rules, "kl_at_zero", "train")->low, 0.02 * std::log(8192.0), 1e-12);
  EXPECT_NEAR(find(rules, "kl_at_maximum", "train")->high, 0.8 * std::log(8192.0), 1e-12);
  EXPECT_DOUBLE_EQ(find(rules, "codebook_collapse", "validation")->low, 819.2);
  EXPECT_DOUBLE_EQ(find(rules, "codebook_collapse", "train")->low, 819.2) << "512 pictures have more positions";
  config.trainer.batch_size = 2;
  EXPECT_DOUBLE_EQ(find(dvae_health_rules(config), "codebook_collapse", "train")->low, 204.8)
      << "2048 positions can use 2048 codes";
}

TEST(DvaeHealth, RemediesNameTheKeysAndTheirValues) {
  auto config = paper();
  config.relaxation.kl_weight_end = 40;
  const auto rules = dvae_health_rules(config);
  EXPECT_THAT(find(rules, "kl_at_zero", "train")->remedy, HasSubstr("relaxation.kl_weight_end (now 40)"));
  EXPECT_THAT(find(rules, "kl_at_zero", "train")->remedy, HasSubstr("learning_rate.start (now 0.0001)"));
  EXPECT_THAT(find(rules, "kl_at_maximum", "train")->remedy, HasSubstr("raise relaxation.kl_weight_end"));
  EXPECT_THAT(find(rules, "codebook_collapse", "train")->remedy, HasSubstr("relaxation.kl_weight_end"));
}

TEST(DvaeHealth, ACodebookHasNoKlToWatch) {
  auto config = paper();
  config.model.quantizer = models::Quantizer::kVq;
  const auto rules = dvae_health_rules(config);
  EXPECT_EQ(find(rules, "kl_at_zero", "train"), nullptr);
  EXPECT_EQ(find(rules, "kl_at_maximum", "train"), nullptr);
  EXPECT_THAT(find(rules, "codebook_collapse", "validation")->remedy, HasSubstr("vector_quantizer.restart_share"));
}

}  // namespace
}  // namespace dalle::training

// The dVAE's configs: the paper's recipe number by number, keys that do not fit together, and the ablations.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "dalle/training/ablation_report.h"
#include "dalle/training/config.h"
#include "support/thrown_message.h"

namespace dalle::training {
namespace {

using ::testing::HasSubstr;

const std::filesystem::path kConfigs = std::filesystem::path(DALLE_SOURCE_DIR) / "configs";

TEST(DvaeConfig, ThePapersRecipeIsWrittenOut) {
  const auto dvae = config::load_config_file<DvaeTraining>(kConfigs / "paper/dvae.yaml");
  EXPECT_EQ(dvae.optimizer.beta1, 0.9);
  EXPECT_EQ(dvae.optimizer.beta2, 0.999);
  EXPECT_EQ(dvae.optimizer.eps, 1e-8);
  EXPECT_EQ(dvae.optimizer.weight_decay, 1e-4);
  EXPECT_EQ(dvae.trainer.ema_decay, 0.999);
  EXPECT_EQ(dvae.trainer.ema_interval_steps, 1);
  EXPECT_EQ(dvae.trainer.batch_size, 512);
  EXPECT_EQ(dvae.trainer.num_steps, 3'000'000);
  EXPECT_EQ(dvae.trainer.clip_norm, 0) << "the paper clips in stage 2 only";
  EXPECT_EQ(optim::value(dvae.learning_rate, 0), 1e-4);
  EXPECT_NEAR(optim::value(dvae.learning_rate, 600'000), 5.0625e-5, 1e-12);
  EXPECT_EQ(optim::value(dvae.learning_rate, 1'200'000), 1.25e-6);
  EXPECT_EQ(optim::value(dvae.learning_rate, 2'999'999), 1.25e-6);
  EXPECT_EQ(dvae.relaxation_precision, Precision::kF32);
  EXPECT_FALSE(dvae.relaxation.min_log_scale.has_value());
  EXPECT_FALSE(dvae.relaxation.straight_through);
  EXPECT_EQ(dvae.relaxation.kl_normalization, KlNormalization::kPaper);
  EXPECT_EQ(dvae.model.quantizer, models::Quantizer::kGumbel);
  EXPECT_EQ(dvae.model.likelihood, layers::Likelihood::kLogitLaplace);
  EXPECT_EQ(dvae.data.augmentation, data::Augmentation::kStage1);
  EXPECT_TRUE(dvae.data.horizontal_flip);
  EXPECT_EQ(dvae.data.resize_filter, data::ResizeFilter::kArea);
}

TEST(DvaeConfig, KeysThatDoNotFitTogetherAreRefused) {
  const auto load = [](const std::string& yaml) {
    const std::string data = "data:\n  sources: [{path: x}]\n";
    return testing::message_of<ConfigError>(
        [&] { config::load_config<DvaeTraining>(config::parse_yaml(data + yaml, "my.yaml")); });
  };
  EXPECT_THAT(load("model: {quantizer: vq}\nrelaxation: {straight_through: true}\n"),
              HasSubstr("expected relaxation.straight_through with model.quantizer gumbel, got quantizer vq"));
  EXPECT_THAT(load("vector_quantizer: {codebook_decay: 1}\n"), HasSubstr("codebook_decay below 1"));
  EXPECT_THAT(load("model: {likelihood: l2}\n"), HasSubstr("one of: logit_laplace, laplace, gaussian"));
}

TEST(DvaeConfig, HealthBoundsMayChangeOnResumeTheModelMayNot) {
  const auto rows = config::describe<DvaeTraining>();
  for (const char* path : {"trainer.health.grace_steps", "trainer.health.patience_steps", "trainer.health.repeat_steps",
                           "health.min_kl_share", "health.max_kl_share", "health.min_perplexity_share"}) {
    EXPECT_TRUE(config::is_changeable(rows, path)) << path;
  }
  for (const char* path : {"model.quantizer", "model.likelihood", "relaxation.straight_through",
                           "vector_quantizer.codebook_decay", "vector_quantizer.restart_share"}) {
    EXPECT_FALSE(config::is_changeable(rows, path)) << path;
  }
}

TEST(DvaeConfig, EveryAblationIsAConfigAndNoTwoAreAlike) {
  const auto variants = read_variants(kConfigs / "ablations/variants.txt");
  EXPECT_GE(variants.size(), 10U);
  std::set<std::string> names, configs;
  for (const auto& variant : variants) {
    auto node = config::parse_yaml_file(kConfigs / "ablations/dvae.yaml");
    for (const auto& assignment : variant.assignments) config::apply_set(node, assignment);
    const auto config = config::load_config<DvaeTraining>(node);
    EXPECT_GT(models::Dvae(config.model).num_parameters(), 0);
    EXPECT_TRUE(names.insert(variant.name).second) << variant.name;
    EXPECT_TRUE(configs.insert(config::emit_yaml(config::dump(config))).second) << variant.name;
  }
}

}  // namespace
}  // namespace dalle::training

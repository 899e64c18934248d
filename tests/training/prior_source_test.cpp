// Training on stored tokens: the same run as with pictures, without a dVAE, and what is refused.
#include "dalle/training/prior_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dalle/training/encode_job.h"
#include "training/tiny_runs.h"

namespace dalle::training {
namespace {

using ::testing::HasSubstr;

/// The tokens of the pictures that a tiny prior is trained and validated on, cropped plainly.
struct TokenSets {
  testing::TempDirectory scratch{"prior-tokens"};
  fs::path train = encode("train", emoji("train.tar", 32), parts().dvae);
  fs::path val = encode("val", emoji("val.tar", 16), parts().dvae);
  fs::path other = encode("other", emoji("train.tar", 32), parts().other_dvae);

  fs::path encode(const std::string& name, const data::SourceConfig& source, const fs::path& dvae) const {
    set_console_level(LogLevel::kError);
    EncodeConfig config;
    config.dvae = dvae;
    config.data.pictures.sources = {source};
    config.data.pictures.augmentation = data::Augmentation::kNone;
    config.crops_per_image = 1;
    config.precision = Precision::kF32;
    const cli::Invocation call{
        .command = "encode-images", .config_name = name, .run_dir = scratch / name, .resolved_config = "a: 1\n"};
    EXPECT_EQ(run_encode(config, call), cli::kDone);
    set_log_file("");
    return scratch / name;
  }
};

const TokenSets& token_sets() {
  static const TokenSets sets;
  return sets;
}

PriorTraining on_line(int64_t num_steps = 6) {
  auto config = tiny_prior(num_steps);
  config.data.augmentation = data::Augmentation::kNone;
  config.trainer.validation_interval_steps = 3;
  return config;
}

PriorTraining on_tokens(int64_t num_steps = 6) {
  auto config = on_line(num_steps);
  config.data.sources.clear();
  config.data.tokens = {token_sets().train};
  config.validation.sources.clear();
  config.validation.tokens = {token_sets().val};
  return config;
}

TEST(PriorSource, StoredTokensGiveTheSameRunBitForBit) {
  const testing::TempDirectory scratch("tokens-same");
  ASSERT_TRUE(train(on_line(), scratch / "pictures"));
  ASSERT_TRUE(train(on_tokens(), scratch / "tokens"));
  const auto pictures = metrics_of(scratch / "pictures"), tokens = metrics_of(scratch / "tokens");
  ASSERT_EQ(tokens.size(), pictures.size());
  for (size_t i = 0; i < tokens.size(); ++i) EXPECT_EQ(tokens[i].dump(), pictures[i].dump());
  expect_same_tensors(latest(scratch / "tokens").model, latest(scratch / "pictures").model);
  EXPECT_EQ(latest(scratch / "tokens").identities.at("dvae"), latest(scratch / "pictures").identities.at("dvae"));
  EXPECT_TRUE(fs::exists(scratch / "tokens/samples/samples-00000003.png")) << "its dVAE draws previews";
}

TEST(PriorSource, TokensNeedNoDvae) {
  const testing::TempDirectory scratch("tokens-no-dvae");
  auto config = on_tokens();
  ASSERT_TRUE(train(config, scratch / "with"));
  config.dvae.clear();
  ASSERT_NO_THROW(config.validate("prior"));
  ASSERT_TRUE(train(config, scratch / "without"));
  expect_same_tensors(latest(scratch / "without").model, latest(scratch / "with").model);
  EXPECT_EQ(latest(scratch / "without").identities.at("dvae"), latest(scratch / "with").identities.at("dvae"));
  EXPECT_FALSE(fs::exists(scratch / "without/samples/samples-00000003.png"));
  EXPECT_TRUE(fs::exists(scratch / "without/samples/inputs-00000000.png"));
  EXPECT_TRUE(fs::exists(scratch / "without/samples/position-loss-00000003.png"));
}

TEST(PriorSource, ResumesOnTokens) {
  const testing::TempDirectory scratch("tokens-resume");
  ASSERT_TRUE(train(on_tokens(), scratch / "straight"));
  ASSERT_TRUE(train(on_tokens(2), scratch / "parts"));
  ASSERT_TRUE(train(on_tokens(6), scratch / "parts", /*resume=*/true));
  expect_same_tensors(latest(scratch / "parts").model, latest(scratch / "straight").model);
}

TEST(PriorSource, TokensOfAnotherDvaeAreRefused) {
  auto config = on_tokens();
  config.data.tokens = {token_sets().other};
  EXPECT_THAT(message_of<ConfigError>([&] { PriorTask(config, at::kCPU); }), HasSubstr("the dVAE whose tokens are in"));
  config.dvae.clear();
  EXPECT_THAT(message_of<ConfigError>([&] { PriorTask(config, at::kCPU); }), HasSubstr("the dVAE whose tokens are in"))
      << "validation has other tokens than training";
}

TEST(PriorSource, SizesComeFromTheTokens) {
  auto config = on_tokens();
  config.model.grid_size = 8;
  EXPECT_THAT(message_of<ConfigError>([&] { PriorTask(config, at::kCPU); }),
              HasSubstr("model.grid_size: expected 4, as the token set has"));
}

TEST(PriorSource, EitherPicturesOrTokens) {
  auto config = on_tokens();
  config.data.sources = on_line().data.sources;
  EXPECT_THAT(message_of<ConfigError>([&] { config.data.validate("data"); }),
              HasSubstr("expected sources or tokens, got both"));
  config = on_line();
  config.dvae.clear();
  EXPECT_THAT(message_of<ConfigError>([&] { config.validate("prior"); }), HasSubstr("a dvae to encode the pictures"));
}

}  // namespace
}  // namespace dalle::training

#include "dalle/data/data_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dalle/config/fields.h"
#include "dalle/core/error.h"

namespace dalle::data {
namespace {

using ::testing::ElementsAre;

TEST(DataConfig, LoadsChecksAndParsesColours) {
  const auto config = config::load_config<DataConfig>(config::parse_yaml(
      "sources: [{path: a.tar}, {path: b.tar, max_samples: 5}]\naugmentation: stage2\nbackground: '#102030'\n",
      "test.yaml"));
  EXPECT_EQ(config.sources[1].max_samples, 5);
  EXPECT_EQ(config.augmentation, Augmentation::kStage2);
  const Background color = parse_background(config.background);
  EXPECT_THAT((std::vector<int>{color.red, color.green, color.blue}), ElementsAre(16, 32, 48));
  for (const char* yaml :
       {"sources: []", "sources: [{path: a}]\nbackground: pink", "sources: [{path: a}]\nbackground: '#12345g'",
        "sources: [{path: a}]\nloader_threads: 0", "sources: [{path: a}]\naugmentation: stage3"}) {
    EXPECT_THROW(config::load_config<DataConfig>(config::parse_yaml(yaml, "test.yaml")), ConfigError) << yaml;
  }
}

TEST(DataConfig, TransformOptionsFollowTheConfig) {
  const DataConfig config{.augmentation = Augmentation::kStage2,
                          .horizontal_flip = true,
                          .resize_filter = ResizeFilter::kLanczos,
                          .upscale_small = true};
  const TransformOptions options = transform_options(config, 48);
  EXPECT_EQ(options.image_size, 48);
  EXPECT_EQ(options.augmentation, Augmentation::kStage2);
  EXPECT_EQ(options.filter, ResizeFilter::kLanczos);
  EXPECT_TRUE(options.horizontal_flip);
  EXPECT_TRUE(options.upscale_small);
}

}  // namespace
}  // namespace dalle::data

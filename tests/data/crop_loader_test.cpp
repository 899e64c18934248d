#include "dalle/data/crop_loader.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dalle/core/error.h"
#include "dalle/core/random.h"
#include "support/memory_source.h"

namespace dalle::data {
namespace {

using testing::dataset_of;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::memory_dataset;
using testing::MemorySource;

DataConfig config_with(int threads) { return {.augmentation = Augmentation::kStage2, .loader_threads = threads}; }

CropLoaderOptions options_with(int64_t samples_per_batch, uint64_t seed = 4) {
  return {.image_size = 16, .num_crops = 3, .samples_per_batch = samples_per_batch, .seed = seed};
}

std::vector<CropBatch> all_of(CropLoader& loader) {
  std::vector<CropBatch> batches;
  for (int64_t i = 0; i < loader.num_batches(); ++i) batches.push_back(loader.next());
  return batches;
}

Tensor all_images(const std::vector<CropBatch>& batches) {
  std::vector<Tensor> images;
  for (const auto& batch : batches) images.push_back(batch.images);
  return at::cat(images);
}

TEST(CropLoader, GivesEverySampleOnceWithAllItsCaptions) {
  const Dataset dataset = memory_dataset(11);
  CropLoader loader(dataset, config_with(3), options_with(4), {{0, 11}});
  ASSERT_EQ(loader.num_batches(), 3);
  int64_t index = 0;
  for (const auto& batch : all_of(loader)) {
    EXPECT_EQ(batch.range.first, index);
    EXPECT_EQ(batch.images.sizes(), at::IntArrayRef({3 * static_cast<int64_t>(batch.keys.size()), 3, 16, 16}));
    for (size_t k = 0; k < batch.keys.size(); ++k, ++index) {
      EXPECT_EQ(batch.indices[k], index);
      EXPECT_EQ(batch.keys[k], str("key", index));
      EXPECT_EQ(batch.captions[k], dataset.captions(index));
      const Tensor crops = batch.images.slice(0, 3 * static_cast<int64_t>(k), 3 * static_cast<int64_t>(k) + 3);
      EXPECT_EQ(crops.index({at::indexing::Slice(), 0, 8, 8}).max().item<int64_t>(), index) << "its own picture";
    }
    EXPECT_EQ(batch.range.end, index);
  }
  EXPECT_EQ(index, 11);
}

// What a crop shows is a function of (seed, sample, crop): threads, batches and ranges do not matter.
TEST(CropLoader, CropsDoNotDependOnThreadsBatchesOrRanges) {
  const Dataset dataset = memory_dataset(12);
  CropLoader one(dataset, config_with(1), options_with(1), {{0, 12}});
  CropLoader five(dataset, config_with(5), options_with(5), {{0, 12}});
  CropLoader parts(dataset, config_with(2), options_with(5), {{0, 3}, {3, 3}, {3, 10}, {10, 12}});
  const Tensor images = all_images(all_of(one));
  EXPECT_TRUE(images.equal(all_images(all_of(five))));
  const auto batches = all_of(parts);
  EXPECT_EQ(batches.size(), 1U + 0 + 2 + 1) << "no batch holds samples of two ranges";
  EXPECT_TRUE(images.equal(all_images(batches)));
  CropLoader late(dataset, config_with(1), options_with(2), {{7, 9}});
  EXPECT_TRUE(images.slice(0, 21, 27).equal(all_images(all_of(late))));
  CropLoader other(dataset, config_with(1), options_with(1, 5), {{0, 12}});
  EXPECT_FALSE(images.equal(all_images(all_of(other)))) << "another seed";
}

TEST(CropLoader, TheCropsOfASampleDiffer) {
  const Tensor picture = at::arange(40 * 40 * 3).remainder(251).to(at::kByte).view({40, 40, 3});
  const TransformOptions transform{.image_size = 16, .augmentation = Augmentation::kStage1};
  const Tensor crops = make_crops(picture, transform, 9, 5, 4);
  ASSERT_EQ(crops.size(0), 4);
  for (int64_t a = 0; a < 4; ++a) {
    EXPECT_TRUE(crops[a].equal(
        transform_picture(picture, transform, random_key(9, Purpose::kAugment, 5, static_cast<uint64_t>(a)))));
    for (int64_t b = 0; b < a; ++b) EXPECT_FALSE(crops[a].equal(crops[b])) << a << " " << b;
  }
  EXPECT_FALSE(crops[0].equal(make_crops(picture, transform, 9, 6, 1)[0])) << "another sample";
  EXPECT_TRUE(crops.slice(0, 0, 2).equal(make_crops(picture, transform, 9, 5, 2))) << "more crops leave the first ones";
}

TEST(CropLoader, BadPicturesAreLeftOutAndNamed) {
  const Dataset dataset = memory_dataset(9, {0, 1, 2, 7});
  CropLoader loader(dataset, config_with(2), options_with(3), {{0, 9}});
  const auto batches = all_of(loader);
  EXPECT_FALSE(batches[0].images.defined());
  ASSERT_EQ(batches[0].bad.size(), 3U);
  EXPECT_THAT(batches[0].bad[1].reason, HasSubstr("memory: key1: "));
  EXPECT_THAT(batches[1].indices, ElementsAre(3, 4, 5));
  EXPECT_THAT(batches[2].indices, ElementsAre(6, 8));
  EXPECT_EQ(batches[2].images.size(0), 6);
  EXPECT_EQ(batches[2].bad[0].index, 7);
}

TEST(CropLoader, APictureThatIsTooSmallIsBad) {
  const Dataset dataset = dataset_of(std::make_unique<MemorySource>(2, std::set<int64_t>{}, 12));
  CropLoader refused(dataset, config_with(1), options_with(2), {{0, 2}});
  EXPECT_THAT(refused.next().bad[0].reason, HasSubstr("at least 16 pixels"));
  auto config = config_with(1);
  config.upscale_small = true;
  CropLoader enlarged(dataset, config, options_with(2), {{0, 2}});
  EXPECT_TRUE(enlarged.next().bad.empty());
}

TEST(CropLoader, AnUnreadableFileEndsTheRun) {
  auto source = std::make_unique<MemorySource>(6);
  source->throwing = 4;
  const Dataset dataset = dataset_of(std::move(source));
  CropLoader loader(dataset, config_with(2), options_with(3), {{0, 6}});
  EXPECT_EQ(loader.next().indices.size(), 3U);
  EXPECT_THROW(loader.next(), FileError);
}

}  // namespace
}  // namespace dalle::data

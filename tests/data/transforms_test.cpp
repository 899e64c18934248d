#include "dalle/data/transforms.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <map>
#include <set>

#include "dalle/core/error.h"
#include "support/golden.h"

namespace dalle::data {
namespace {

RandomKey key(int64_t position) { return random_key(11, Purpose::kAugment, static_cast<uint64_t>(position)); }

using Range = std::pair<int64_t, int64_t>;

Range range_of(const std::set<int64_t>& values) { return {*values.begin(), *values.rbegin()}; }

struct Seen {
  std::set<int64_t> top, left, resized;
  std::map<int64_t, std::set<int64_t>> crop_top, crop_left;  // by resized size
  int flips = 0;
};

Seen draw_many(const TransformOptions& options, int64_t height, int64_t width, int count = 20000) {
  Seen seen;
  for (int i = 0; i < count; ++i) {
    const auto draw = draw_augmentation(options, height, width, key(i));
    EXPECT_EQ(draw.square_size, std::min(height, width));
    EXPECT_EQ(draw.resized_height, draw.resized_width);
    seen.top.insert(draw.square_top);
    seen.left.insert(draw.square_left);
    seen.resized.insert(draw.resized_height);
    seen.crop_top[draw.resized_height].insert(draw.crop_top);
    seen.crop_left[draw.resized_height].insert(draw.crop_left);
    seen.flips += draw.flip ? 1 : 0;
  }
  return seen;
}

/// All values of [low, high] and no other.
void expect_full(const std::set<int64_t>& values, int64_t low, int64_t high) {
  EXPECT_EQ(range_of(values), Range(low, high));
  EXPECT_EQ(static_cast<int64_t>(values.size()), high - low + 1);
}

void expect_full_crops(const Seen& seen, int64_t size) {
  for (const auto& [resized, tops] : seen.crop_top) expect_full(tops, 0, resized - size);
  for (const auto& [resized, lefts] : seen.crop_left) expect_full(lefts, 0, resized - size);
}

TEST(Transforms, Stage1DrawsExactlyTheListingsRangesScaled) {
  const TransformOptions options{.image_size = 32, .augmentation = Augmentation::kStage1, .horizontal_flip = true};
  const Seen seen = draw_many(options, 70, 64);
  expect_full(seen.top, 0, 6);
  expect_full(seen.left, 0, 0);
  expect_full(seen.resized, 36, 48);
  expect_full_crops(seen, 32);
  EXPECT_NEAR(seen.flips / 20000.0, 0.5, 0.02);
}

TEST(Transforms, Stage1OfThePaperUses288To384) {
  const TransformOptions options{.image_size = 256, .augmentation = Augmentation::kStage1};
  expect_full(draw_many(options, 400, 900).resized, 288, 384);
  expect_full(draw_many(options, 300, 900).resized, 288, 300);  // min(s, 384)
  expect_full(draw_many(options, 270, 900).resized, 270, 270);  // min(s, 288)
  EXPECT_EQ(draw_many(options, 400, 900).flips, 0);
}

TEST(Transforms, Stage2StaysNearTheCentre) {
  const TransformOptions options{.image_size = 256, .augmentation = Augmentation::kStage2};
  const Seen seen = draw_many(options, 356, 300);  // difference 56: offsets in [21, 35)
  expect_full(seen.top, 21, 34);
  expect_full(seen.left, 0, 0);
  expect_full(seen.resized, 256, 288);
  expect_full_crops(seen, 256);
  expect_full(draw_many(options, 260, 261).left, 0, 0);  // difference 1: [0, max(1, 0))
  expect_full(draw_many(options, 260, 263).left, 1, 1);  // difference 3: [1, max(2, 1))
  expect_full(draw_many(options, 260, 263).resized, 256, 260);
}

TEST(Transforms, NoneCutsTheCentreOfTheScaledPicture) {
  const TransformOptions options{.image_size = 4, .filter = ResizeFilter::kArea};
  const Tensor image = at::randint(0, 256, {8, 12, 3}).to(at::kByte);
  const Tensor half = resize(image, 4, 6, ResizeFilter::kArea);
  const Tensor expected = half.narrow(1, 1, 4).permute({2, 0, 1});
  EXPECT_TRUE(transform_picture(image, options, key(0)).equal(expected));
  EXPECT_TRUE(transform_picture(image, options, key(1)).equal(expected));
}

TEST(Transforms, FlipIsIndependentOfTheAugmentation) {
  const TransformOptions options{.image_size = 4, .horizontal_flip = true};
  const Tensor image = at::randint(0, 256, {4, 4, 3}).to(at::kByte);
  const Tensor plain = image.permute({2, 0, 1});
  int flips = 0;
  for (int i = 0; i < 200; ++i) {
    const Tensor out = transform_picture(image, options, key(i));
    const bool flipped = out.equal(plain.flip(2));
    EXPECT_TRUE(flipped || out.equal(plain));
    flips += flipped ? 1 : 0;
  }
  EXPECT_GT(flips, 70);
  EXPECT_LT(flips, 130);
}

TEST(Transforms, PixelsComeFromTheDrawnPlace) {
  const TransformOptions options{.image_size = 3};
  const Tensor image = at::randint(0, 256, {10, 8, 3}).to(at::kByte);
  const AugmentationDraw draw{.square_size = 6,
                              .square_top = 2,
                              .square_left = 1,
                              .resized_height = 6,
                              .resized_width = 6,
                              .crop_top = 1,
                              .crop_left = 3,
                              .flip = true};
  const Tensor expected = image.narrow(0, 3, 3).narrow(1, 4, 3).flip(1).permute({2, 0, 1});
  EXPECT_TRUE(apply_augmentation(image, options, draw).equal(expected));
}

TEST(Transforms, OutputHasTheShapeOfTheModelForEveryKind) {
  const Tensor image = at::randint(0, 256, {64, 90, 3}).to(at::kByte);
  for (const auto kind : {Augmentation::kNone, Augmentation::kStage1, Augmentation::kStage2}) {
    const Tensor out = transform_picture(image, {.image_size = 32, .augmentation = kind}, key(3));
    EXPECT_EQ(out.sizes(), at::IntArrayRef({3, 32, 32}));
    EXPECT_EQ(out.scalar_type(), at::kByte);
    EXPECT_TRUE(out.is_contiguous());
    EXPECT_TRUE(out.equal(transform_picture(image, {.image_size = 32, .augmentation = kind}, key(3))));
  }
}

TEST(Transforms, SmallPicturesAreRefusedOrEnlarged) {
  const Tensor image = at::randint(0, 256, {20, 31, 3}).to(at::kByte);
  for (const auto kind : {Augmentation::kNone, Augmentation::kStage1, Augmentation::kStage2}) {
    EXPECT_THROW(transform_picture(image, {.image_size = 32, .augmentation = kind}, key(0)), DataError);
    const TransformOptions enlarging{.image_size = 32, .augmentation = kind, .upscale_small = true};
    EXPECT_EQ(transform_picture(image, enlarging, key(0)).sizes(), at::IntArrayRef({3, 32, 32}));
  }
}

TEST(Transforms, APictureTooThinToBeEnlargedIsRefused) {
  const Tensor thin = at::zeros({1, 60000, 3}, at::kByte);
  EXPECT_THROW(clip_picture(thin, 32), DataError);
  EXPECT_THROW(clip_picture(thin.transpose(0, 1), 32), DataError);
  TransformOptions enlarging{.image_size = 32, .augmentation = Augmentation::kNone};
  enlarging.upscale_small = true;
  EXPECT_THROW(transform_picture(thin, enlarging, key(0)), DataError);
  EXPECT_EQ(clip_picture(at::zeros({1, 64, 3}, at::kByte), 32).sizes(), at::IntArrayRef({3, 32, 32}));
  EXPECT_EQ(clip_picture(at::zeros({32, 6000, 3}, at::kByte), 32).sizes(), at::IntArrayRef({3, 32, 32}));
}

// scripts/golden/clip_packages.py: larger, smaller and equal pictures, in both orientations, through torchvision and Pillow.
TEST(Transforms, ClipPicturesAreThePackagesWithinOneLevel) {
  const testing::Golden golden("clip_packages.safetensors");
  const Tensor mean = at::tensor({0.48145466, 0.4578275, 0.40821073}).view({3, 1, 1});
  const Tensor std = at::tensor({0.26862954, 0.26130258, 0.27577711}).view({3, 1, 1});
  for (const char* name : {"50x37", "33x90", "32x32", "20x27", "300x41"}) {
    const Tensor levels = (golden.at(str("seen.", name)) * std + mean) * 255;
    const Tensor ours = clip_picture(golden.at(str("picture.", name)), 32).to(at::kFloat);
    EXPECT_EQ(ours.sizes(), levels.sizes());
    EXPECT_LE((ours - levels).abs().max().item<double>(), 1.001) << name;
    EXPECT_LE((ours - levels).abs().mean().item<double>(), 0.02) << name;
  }
}

}  // namespace
}  // namespace dalle::data

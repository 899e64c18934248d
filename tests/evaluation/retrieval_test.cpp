// Retrieval on cases made by hand, ties and permutations included.
#include "dalle/evaluation/retrieval.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "dalle/core/random.h"

namespace dalle::evaluation {
namespace {

Tensor rows(std::initializer_list<double> values, int64_t width) {
  return at::tensor(values, at::kDouble).view({-1, width});
}

Tensor pictures(int64_t count, int64_t size, uint64_t seed) {
  const auto keys = std::vector<RandomKey>{random_key(seed, Purpose::kEvaluation)};
  return uniform_rows(keys, count * 3 * size * size, at::kCPU).view({count, 3, size, size});
}

TEST(RecallAt, PartnersThatAreNearestAreFound) {
  const Tensor basis = at::eye(4, at::kFloat);
  for (const int64_t k : {1, 2, 4}) {
    EXPECT_EQ(recall_at(basis, basis, k).image_to_text, 1);
    EXPECT_EQ(recall_at(basis, basis, k).text_to_image, 1);
  }
  EXPECT_EQ(recall_at(basis, basis, 0).image_to_text, 0);
}

TEST(RecallAt, CountsTheRankOfThePartnerBothWays) {
  // similarity[image][text]:            its own is the
  const Tensor similarity = rows({0.9, 0.8, 0.1,   // best of row 0
                                  0.7, 0.5, 0.6,   // last of row 1
                                  0.2, 0.4, 0.3},  // second of row 2
                                 3);               // columns: best, second (0.8, 0.5, 0.4), second (0.6, 0.3, 0.1)
  const Tensor images = similarity, texts = at::eye(3, at::kDouble);
  const auto expect = [&](int64_t k, double image_to_text, double text_to_image) {
    const Recall recall = recall_at(images, texts, k);
    EXPECT_DOUBLE_EQ(recall.image_to_text, image_to_text / 3) << k;
    EXPECT_DOUBLE_EQ(recall.text_to_image, text_to_image / 3) << k;
  };
  expect(1, 1, 1);
  expect(2, 2, 3);
  expect(3, 3, 3);
}

TEST(RecallAt, TiesCountAgainst) {
  const Tensor same = at::ones({5, 2});
  EXPECT_EQ(recall_at(same, same, 1).image_to_text, 0);
  EXPECT_EQ(recall_at(same, same, 4).text_to_image, 0);
  EXPECT_EQ(recall_at(same, same, 5).image_to_text, 1);
  const Tensor pair = rows({1, 0, 1, 0, 0, 1}, 2);  // two equal rows and another
  EXPECT_DOUBLE_EQ(recall_at(pair, pair, 1).image_to_text, 1.0 / 3);
  EXPECT_DOUBLE_EQ(recall_at(pair, pair, 2).image_to_text, 1);
}

TEST(RecallAt, NanFindsNothing) {
  const Tensor nan = at::full({4, 3}, NAN), good = at::eye(4, at::kFloat).slice(1, 0, 3);
  EXPECT_EQ(recall_at(nan, nan, 3).image_to_text, 0);
  EXPECT_EQ(recall_at(good, nan, 1).text_to_image, 0);
}

TEST(RecallAt, ChanceOnRandomFeatures) {
  const Tensor images = normal(random_key(1, Purpose::kEvaluation), 2000 * 64).view({2000, 64});
  const Tensor texts = normal(random_key(2, Purpose::kEvaluation), 2000 * 64).view({2000, 64});
  EXPECT_NEAR(recall_at(images, texts, 200).image_to_text, 0.1, 0.03);
  EXPECT_NEAR(recall_at(images, texts, 200).text_to_image, 0.1, 0.03);
}

TEST(NearestOriginal, CountsPicturesThatStayNearestToTheirOwn) {
  for (const int64_t size : {8, 16, 64}) {
    const Tensor originals = pictures(40, size, 1);
    EXPECT_EQ(nearest_original_rate(originals, originals), 1) << size;
    const Tensor noisy = originals + 0.05 * (pictures(40, size, 2) - 0.5);
    EXPECT_EQ(nearest_original_rate(noisy, originals), 1) << size;
    Tensor swapped = noisy.clone();  // three of forty go round in a ring
    swapped.slice(0, 0, 3).copy_(at::cat({noisy.slice(0, 1, 3), noisy.slice(0, 0, 1)}));
    EXPECT_DOUBLE_EQ(nearest_original_rate(swapped, originals), 37.0 / 40) << size;
    EXPECT_EQ(nearest_original_rate(originals.roll(1, 0), originals), 0) << size;
  }
}

TEST(NearestOriginal, NamesTheRow) {
  const Tensor originals = pictures(9, 16, 1);
  const Tensor found = nearest_original(originals.slice(0, 4, 7).flip(0) + 0.01, originals);
  EXPECT_TRUE(at::equal(found, at::tensor({6, 5, 4}, at::kLong))) << found;
}

TEST(NearestOriginal, LooksAtTheAveragesOfBlocks) {
  // Detail inside the 4 x 4 blocks of a 64-pixel picture does not count; brightness of blocks does.
  const Tensor originals = pictures(30, 64, 3);
  const Tensor pooled = at::avg_pool2d(originals, {4, 4});
  const Tensor blocky = at::upsample_nearest2d(pooled, {64, 64});
  EXPECT_EQ(nearest_original_rate(blocky, originals), 1);
  EXPECT_EQ(nearest_original_rate(originals, blocky), 1);
}

TEST(NearestOriginal, TellsNearTwinsApart) {
  // Sixty pictures that differ by a thousandth: squared distances by matrix product in f32 could not tell them apart.
  const Tensor originals = pictures(1, 16, 4) + 1e-3 * pictures(60, 16, 5);
  EXPECT_EQ(nearest_original_rate(originals, originals), 1);
  const Tensor near = originals + 1e-4 * (pictures(60, 16, 6) - 0.5);
  EXPECT_EQ(nearest_original_rate(near, originals), 1);
}

}  // namespace
}  // namespace dalle::evaluation

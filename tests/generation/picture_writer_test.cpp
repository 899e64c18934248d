#include "dalle/generation/picture_writer.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "dalle/core/files.h"
#include "dalle/data/image_codec.h"
#include "support/temp_directory.h"

namespace dalle::generation {
namespace {

const TextStyle kStyle{.size = 14};

Tensor random_picture(int64_t height, int64_t width) {
  return (at::arange(height * width * 3).mul(7919).remainder(256)).to(at::kByte).view({height, width, 3});
}

TEST(PictureWriter, FloatPlanesBecomeRoundedBytes) {
  const Tensor planes = at::tensor({-0.5f, 0.0f, 0.5f, 1.0f, 2.0f, 0.2f}).view({3, 1, 2});
  const Tensor picture = to_picture(planes);
  EXPECT_TRUE(at::equal(picture, at::tensor({0, 128, 255, 0, 255, 51}).to(at::kByte).view({1, 2, 3}))) << picture;
}

TEST(PictureWriter, BothFormsOfAPictureAgree) {
  const Tensor picture = random_picture(5, 4);
  EXPECT_TRUE(at::equal(to_picture(picture.permute({2, 0, 1}).to(at::kFloat).div(255)), picture));
  EXPECT_TRUE(at::equal(to_picture(picture), picture));
}

TEST(PictureWriter, OtherShapesAreRefused) {
  EXPECT_THROW(to_picture(at::zeros({4, 4}, at::kByte)), c10::ValueError);
  EXPECT_THROW(to_picture(at::zeros({3, 4, 4}, at::kByte)), c10::ValueError);
  EXPECT_THROW(to_picture(at::zeros({4, 4, 3})), c10::ValueError);
  EXPECT_THROW(to_picture(at::zeros({3, 4, 4}, at::kLong)), c10::ValueError);
}

TEST(PictureWriter, PasteAndFillAreCutAtTheEdges) {
  Tensor target = blank_picture(4, 4, {9, 9, 9});
  const Tensor source = random_picture(3, 3);
  paste(target, source, -1, 2);
  EXPECT_TRUE(at::equal(target.slice(0, 0, 2).slice(1, 2, 4), source.slice(0, 1, 3).slice(1, 0, 2)));
  EXPECT_TRUE(target.slice(0, 2, 4).eq(9).all().item<bool>());
  EXPECT_TRUE(target.slice(1, 0, 2).eq(9).all().item<bool>());
  paste(target, source, 10, 10);
  fill_rectangle(target, -5, -5, 6, 6, {1, 2, 3});
  EXPECT_EQ(target[0][0][2].item<int>(), 3);
  EXPECT_EQ(target[1][0][2].item<int>(), 9);
}

TEST(PictureWriter, PixelsAreEnlargedAsSquares) {
  const Tensor picture = random_picture(3, 2);
  const Tensor large = resize_picture(picture, 9, 6, Enlarge::kPixels);
  EXPECT_TRUE(at::equal(large, picture.repeat_interleave(3, 0).repeat_interleave(3, 1)));
}

TEST(PictureWriter, FlatPicturesStayFlatInAnyResize) {
  const Tensor flat = blank_picture(12, 8, {200, 0, 255});
  for (const auto enlarge : {Enlarge::kPixels, Enlarge::kSmooth}) {
    EXPECT_TRUE(at::equal(resize_picture(flat, 5, 31, enlarge), blank_picture(5, 31, {200, 0, 255})));
  }
}

TEST(PictureWriter, FittedPicturesKeepTheirAspect) {
  EXPECT_EQ(fit_picture(random_picture(20, 10), 50, Enlarge::kSmooth).sizes(), at::IntArrayRef({50, 25, 3}));
  EXPECT_EQ(fit_picture(random_picture(300, 600), 50, Enlarge::kSmooth).sizes(), at::IntArrayRef({25, 50, 3}));
  EXPECT_EQ(fit_picture(random_picture(1, 600), 50, Enlarge::kSmooth).sizes(), at::IntArrayRef({1, 50, 3}));
}

TEST(PictureWriter, TextIsTransliterated) {
  EXPECT_EQ(plain_ascii("d\u00e9j\u00e0 vu \u00c6\u00df"), "deja vu AEss");
  EXPECT_EQ(plain_ascii("\u201cit\u2019s\u201d \u2013 a\u2026"), "\"it's\" - a...");
  EXPECT_EQ(plain_ascii("cat \U0001F431\uFE0F \u732b"), "cat ? ?");
  EXPECT_EQ(plain_ascii("a\tb\nc"), "a b c");
  EXPECT_EQ(plain_ascii("\xff\xc3"), "??");
  EXPECT_EQ(plain_ascii("\xe2\x82"), "??");
}

TEST(PictureWriter, LinesFitTheirWidthAndKeepAllWords) {
  const std::string text = "a cat and a dog on a red sofa";
  const auto lines = wrap_text(text, kStyle, 90, 10);
  ASSERT_GT(lines.size(), 1u);
  std::string joined;
  for (const std::string& line : lines) {
    EXPECT_LE(text_width(line, kStyle), 90) << line;
    joined += (joined.empty() ? "" : " ") + line;
  }
  EXPECT_EQ(joined, text);
}

TEST(PictureWriter, LongTextEndsInDots) {
  const auto lines = wrap_text("one two three four five six seven eight nine ten", kStyle, 100, 2);
  ASSERT_EQ(lines.size(), 2u);
  EXPECT_EQ(lines[0].find("..."), std::string::npos);
  EXPECT_TRUE(lines[1].ends_with("...")) << lines[1];
  EXPECT_LE(text_width(lines[1], kStyle), 100);
}

TEST(PictureWriter, OneLongWordIsCut) {
  const auto lines = wrap_text(std::string(60, 'w'), kStyle, 100, 3);
  ASSERT_EQ(lines.size(), 1u);
  EXPECT_TRUE(lines[0].starts_with("www"));
  EXPECT_TRUE(lines[0].ends_with("w..."));
  EXPECT_LE(text_width(lines[0], kStyle), 100);
}

TEST(PictureWriter, NoTextGivesNoLines) {
  EXPECT_TRUE(wrap_text("", kStyle, 100, 2).empty());
  EXPECT_TRUE(wrap_text("  ", kStyle, 100, 2).empty());
}

TEST(PictureWriter, TextIsDrawnInItsColourWithinItsBox) {
  Tensor picture = blank_picture(40, 120, {255, 255, 255});
  draw_text(picture, 10, 20, "Hg", {.size = 16, .colour = {255, 0, 0}});
  const Tensor changed = picture.ne(255).any(-1);
  ASSERT_TRUE(changed.any().item<bool>()) << "needs OpenCV";
  EXPECT_TRUE(picture.select(-1, 0).eq(255).all().item<bool>()) << "red ink leaves red as it is";
  const Tensor rows = changed.any(1).nonzero(), columns = changed.any(0).nonzero();
  EXPECT_GE(rows.min().item<int64_t>(), 10);
  EXPECT_LT(rows.max().item<int64_t>(), 10 + line_height({.size = 16}));
  EXPECT_GE(columns.min().item<int64_t>(), 20);
  EXPECT_LT(columns.max().item<int64_t>(), 20 + text_width("Hg", {.size = 16}));
  const Tensor grey = picture.select(-1, 1);
  EXPECT_TRUE(grey.gt(40).logical_and(grey.lt(220)).any().item<bool>()) << "edges are antialiased";
}

TEST(PictureWriter, TextOutsideThePictureIsCut) {
  Tensor picture = blank_picture(8, 8, {255, 255, 255});
  draw_text(picture, -6, -4, "W", kStyle);
  draw_text(picture, 5, 6, "W", kStyle);
  draw_text(picture, 50, 50, "W", kStyle);
  EXPECT_TRUE(picture.ne(255).any().item<bool>());
}

TEST(PictureWriter, PngHoldsThePicture) {
  const testing::TempDirectory directory("picture-writer");
  const Tensor picture = random_picture(7, 5);
  write_png(directory / "a.png", picture);
  EXPECT_TRUE(at::equal(data::decode_picture(read_file(directory / "a.png")), picture));
}

}  // namespace
}  // namespace dalle::generation

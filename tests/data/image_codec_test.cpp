#include "dalle/data/image_codec.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/data/exif_orientation.h"
#include "support/picture_files.h"

namespace dalle::data {
namespace {

using testing::make_png;
using testing::png_chunk;

Tensor picture(int64_t height, int64_t width, const std::vector<int>& rgb) {
  return at::tensor(at::ArrayRef<int>(rgb), at::kInt).to(at::kByte).reshape({height, width, 3});
}

/// A smooth picture of which all eight orientations differ.
Tensor gradient_picture(int64_t height, int64_t width) {
  const Tensor y = at::arange(height).view({height, 1}).expand({height, width}) * 200 / height;
  const Tensor x = at::arange(width).view({1, width}).expand({height, width}) * 100 / width;
  return at::stack({y, x, y + x / 2}, 2).to(at::kByte);
}

std::filesystem::path golden(const std::string& name) {
  return std::filesystem::path(DALLE_SOURCE_DIR) / "tests" / "golden" / name;
}

TEST(ImageCodec, PngRoundTripIsExact) {
  const Tensor image = at::randint(0, 256, {7, 5, 3}).to(at::kByte);
  EXPECT_TRUE(decode_picture(encode_png(image)).equal(image));
}

TEST(ImageCodec, EncodesViewsAndRefusesOtherShapes) {
  const Tensor image = at::randint(0, 256, {3, 6, 4}).to(at::kByte);
  const Tensor view = image.permute({1, 2, 0});
  EXPECT_TRUE(decode_picture(encode_png(view)).equal(view.contiguous()));
  EXPECT_THROW(encode_png(image), c10::ValueError);
  EXPECT_THROW(encode_png(view.to(at::kFloat)), c10::ValueError);
}

TEST(ImageCodec, AlphaGoesOnTheBackground) {
  const std::string png = make_png(3, 1, 6, 8, std::string("\xFF\x00\x00\xFF\x00\xFF\x00\x00\x00\x00\x00\x80", 12));
  EXPECT_TRUE(decode_picture(png).equal(picture(1, 3, {255, 0, 0, 255, 255, 255, 127, 127, 127})));
  EXPECT_TRUE(decode_picture(png, {0, 0, 255}).equal(picture(1, 3, {255, 0, 0, 0, 0, 255, 0, 0, 127})));
}

TEST(ImageCodec, PaletteWithAndWithoutTransparency) {
  const std::string palette = png_chunk("PLTE", std::string("\x0A\x14\x1E\xC8\x64\x32", 6));
  const std::string pixels("\x00\x01", 2);
  EXPECT_TRUE(decode_picture(make_png(2, 1, 3, 8, pixels, palette)).equal(picture(1, 2, {10, 20, 30, 200, 100, 50})));
  const std::string clear_second = palette + png_chunk("tRNS", std::string("\xFF\x00", 2));
  EXPECT_TRUE(
      decode_picture(make_png(2, 1, 3, 8, pixels, clear_second)).equal(picture(1, 2, {10, 20, 30, 255, 255, 255})));
}

TEST(ImageCodec, GreyWithAndWithoutAlpha) {
  EXPECT_TRUE(
      decode_picture(make_png(2, 1, 0, 8, std::string("\x05\xFA", 2))).equal(picture(1, 2, {5, 5, 5, 250, 250, 250})));
  EXPECT_TRUE(decode_picture(make_png(2, 1, 4, 8, std::string("\x05\xFF\x05\x00", 4)))
                  .equal(picture(1, 2, {5, 5, 5, 255, 255, 255})));
  EXPECT_TRUE(decode_picture(make_png(8, 1, 0, 1, std::string("\xF0", 1)))
                  .equal(at::cat({at::full({1, 4, 3}, 255), at::zeros({1, 4, 3})}, 1).to(at::kByte)));
}

TEST(ImageCodec, SixteenBitsBecomeEight) {
  const std::string pixels("\xFF\xFF\x80\x80\x00\x00", 6);  // 65535, 0x8080, 0
  EXPECT_TRUE(decode_picture(make_png(1, 1, 2, 16, pixels)).equal(picture(1, 1, {255, 128, 0})));
  EXPECT_TRUE(decode_picture(make_png(1, 1, 0, 16, std::string("\x01\x00", 2))).equal(picture(1, 1, {1, 1, 1})));
}

TEST(ImageCodec, CmykJpegAndWebp) {
  const Tensor cmyk = decode_picture(read_file(golden("cmyk.jpg"))).to(at::kInt);
  EXPECT_LT((cmyk[8][2] - at::tensor({255, 0, 0})).abs().max().item<int>(), 12);
  EXPECT_LT((cmyk[8][13] - at::tensor({0, 0, 255})).abs().max().item<int>(), 12);
  const Tensor webp = decode_picture(read_file(golden("alpha.webp")), {0, 0, 0});
  EXPECT_TRUE(webp[8][2].equal(at::tensor({0, 255, 0}).to(at::kByte)));
  EXPECT_TRUE(webp[8][13].equal(at::tensor({0, 0, 0}).to(at::kByte)));
}

// What each EXIF orientation asks for: the stored picture is turned so that it is upright.
Tensor turned(const Tensor& image, int orientation) {
  switch (orientation) {
    case 2:
      return image.flip(1);
    case 3:
      return image.rot90(2);
    case 4:
      return image.flip(0);
    case 5:
      return image.transpose(0, 1);
    case 6:
      return image.rot90(-1);  // clockwise
    case 7:
      return image.rot90(2).transpose(0, 1);
    case 8:
      return image.rot90(1);
    default:
      return image;
  }
}

TEST(ImageCodec, AppliesEveryExifOrientationOfJpegs) {
  const std::string jpeg = encode_jpeg(gradient_picture(16, 24), 100);
  const Tensor stored = decode_picture(jpeg);
  EXPECT_LT((stored.to(at::kInt) - gradient_picture(16, 24).to(at::kInt)).abs().max().item<int>(), 8);
  for (int orientation = 1; orientation <= 8; ++orientation) {
    for (const bool big_endian : {true, false}) {
      const std::string tagged = testing::with_orientation(jpeg, orientation, big_endian);
      EXPECT_EQ(exif_orientation(tagged), orientation);
      EXPECT_TRUE(decode_picture(tagged).equal(turned(stored, orientation).contiguous())) << orientation;
    }
  }
}

TEST(ImageCodec, AppliesOrientationOfPngsWithAlpha) {
  const std::string pixels("\x01\x01\x01\xFF\x02\x02\x02\xFF", 8);
  const std::string exif = png_chunk("eXIf", testing::orientation_tiff(6, true));
  EXPECT_TRUE(decode_picture(make_png(2, 1, 6, 8, pixels, exif)).equal(picture(2, 1, {1, 1, 1, 2, 2, 2})));
}

TEST(ImageCodec, RefusesWhatIsNotAWholePicture) {
  EXPECT_THROW(decode_picture(""), DataError);
  EXPECT_THROW(decode_picture("<html>not found</html>"), DataError);
  EXPECT_THROW(decode_picture("RIFF"), DataError);
  const Tensor image = at::randint(0, 256, {32, 32, 3}).to(at::kByte);
  const std::string png = encode_png(image);
  const std::string jpeg = encode_jpeg(image);
  for (const double share : {0.1, 0.5, 0.9}) {
    EXPECT_THROW(decode_picture(png.substr(0, static_cast<size_t>(share * png.size()))), DataError) << share;
    EXPECT_THROW(decode_picture(jpeg.substr(0, static_cast<size_t>(share * jpeg.size()))), DataError) << share;
  }
}

}  // namespace
}  // namespace dalle::data

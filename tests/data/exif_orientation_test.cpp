#include "dalle/data/exif_orientation.h"

#include <gtest/gtest.h>

#include <string>

#include "support/picture_files.h"

namespace dalle::data {
namespace {

using testing::orientation_tiff;
using testing::with_orientation;

// Start, a comment segment, a scan of two stuffed bytes, end.
const std::string kJpeg = std::string("\xFF\xD8\xFF\xFE\x00\x03!\xFF\xDA\x00\x02\xFF\x00z\xFF\xD9", 16);

std::string webp_with(const std::string& chunk_name, const std::string& payload) {
  const std::string size{static_cast<char>(payload.size()), '\0', '\0', '\0'};
  const std::string odd{"ODD \x03\0\0\0abc\0", 12};
  return std::string("RIFF\0\0\0\0WEBP", 12) + odd + chunk_name + size + payload;
}

TEST(ExifOrientation, ReadsJpegPngAndWebp) {
  for (int orientation = 1; orientation <= 8; ++orientation) {
    for (const bool big_endian : {true, false}) {
      const std::string tiff = orientation_tiff(orientation, big_endian);
      EXPECT_EQ(exif_orientation(with_orientation(kJpeg, orientation, big_endian)), orientation);
      EXPECT_EQ(exif_orientation(testing::make_png(1, 1, 0, 8, "x", testing::png_chunk("eXIf", tiff))), orientation);
      EXPECT_EQ(exif_orientation(webp_with("EXIF", tiff)), orientation);
      EXPECT_EQ(exif_orientation(webp_with("EXIF", std::string("Exif\0\0", 6) + tiff)), orientation);
    }
  }
}

TEST(ExifOrientation, IsUprightWithoutAUsableTag) {
  EXPECT_EQ(exif_orientation(""), 1);
  EXPECT_EQ(exif_orientation("RIFF"), 1);
  EXPECT_EQ(exif_orientation(kJpeg), 1);
  EXPECT_EQ(exif_orientation(webp_with("XMP ", orientation_tiff(6, true))), 1);
  EXPECT_EQ(exif_orientation(with_orientation(kJpeg, 9)), 1);
  EXPECT_EQ(exif_orientation(with_orientation(kJpeg, 0)), 1);
}

TEST(ExifOrientation, SurvivesEveryCutAndEveryDamagedByte) {
  const std::string jpeg = with_orientation(kJpeg, 6);
  for (size_t i = 0; i < jpeg.size(); ++i) {
    std::string damaged = jpeg;
    damaged[i] = static_cast<char>(0xFF);
    for (const auto& bytes : {jpeg.substr(0, i), damaged}) {
      const int orientation = exif_orientation(bytes);
      EXPECT_TRUE(orientation >= 1 && orientation <= 8);
    }
  }
}

TEST(ExifOrientation, FindsJpegsThatAreCutShort) {
  EXPECT_FALSE(is_jpeg_cut_short(kJpeg));
  EXPECT_FALSE(is_jpeg_cut_short(kJpeg + "trailing"));
  for (size_t size = 2; size < kJpeg.size(); ++size) EXPECT_TRUE(is_jpeg_cut_short(kJpeg.substr(0, size))) << size;
  // The end marker of a thumbnail in a segment is not the picture's.
  const std::string thumbnail = std::string("\xFF\xD8\xFF\xE1\x00\x04\xFF\xD9", 8) + kJpeg.substr(2, kJpeg.size() - 4);
  EXPECT_TRUE(is_jpeg_cut_short(thumbnail));
  EXPECT_FALSE(is_jpeg_cut_short("not a JPEG"));
}

}  // namespace
}  // namespace dalle::data

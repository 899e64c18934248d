#include "dalle/data/resize.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace dalle::data {
namespace {

Tensor from_hex(const std::string& hex, int64_t height, int64_t width) {
  Tensor image = at::empty({height, width, 3}, at::kByte);
  for (int64_t i = 0; i < image.numel(); ++i) {
    image.mutable_data_ptr<uint8_t>()[i] =
        static_cast<uint8_t>(std::stoi(hex.substr(static_cast<size_t>(2 * i), 2), nullptr, 16));
  }
  return image;
}

int max_difference(const Tensor& a, const Tensor& b) {
  return (a.to(at::kInt) - b.to(at::kInt)).abs().max().item<int>();
}

/// TensorFlow's ResizeArea in one dimension, written from its definition: every source pixel that the footprint touches
/// counts with the length of the overlap, and indices past the border repeat the border.
double area_1d(const std::vector<double>& in, double low, double high) {
  double sum = 0;
  for (auto j = static_cast<int64_t>(std::floor(low)); static_cast<double>(j) < high; ++j) {
    const double overlap = std::min(high, static_cast<double>(j + 1)) - std::max(low, static_cast<double>(j));
    sum += overlap * in[static_cast<size_t>(std::min<int64_t>(j, static_cast<int64_t>(in.size()) - 1))];
  }
  return sum / (high - low);
}

TEST(Resize, EqualsPillowWithinOneLevel) {
  std::ifstream file(std::filesystem::path(DALLE_SOURCE_DIR) / "tests" / "golden" / "resize.tsv");
  int count = 0;
  std::string filter, in_hex, out_hex;
  for (int64_t h, w, out_h, out_w; file >> filter >> h >> w >> out_h >> out_w >> in_hex >> out_hex; ++count) {
    ResizeFilter kind{};
    ASSERT_TRUE(parse_enum(filter, kind));
    const Tensor ours = resize(from_hex(in_hex, h, w), out_h, out_w, kind);
    const Tensor expected = from_hex(out_hex, out_h, out_w);
    EXPECT_LE(max_difference(ours, expected), 1) << filter << h << "x" << w;
    EXPECT_LT((ours != expected).to(at::kFloat).mean().item<float>(), 0.01f) << filter;
  }
  EXPECT_EQ(count, 8);
}

TEST(Resize, AreaAveragesWholeBlocks) {
  const Tensor image = at::randint(0, 256, {12, 8, 3}).to(at::kByte);
  const Tensor mean = image.to(at::kFloat).view({6, 2, 4, 2, 3}).mean({1, 3}).round().to(at::kByte);
  EXPECT_TRUE(resize(image, 6, 4, ResizeFilter::kArea).equal(mean));
}

TEST(Resize, AlignCornersEqualsItsDefinition) {
  for (const auto& [in, out] :
       std::vector<std::pair<int64_t, int64_t>>{{64, 32}, {64, 48}, {17, 5}, {9, 8}, {7, 7}, {6, 1}, {5, 9}}) {
    const Tensor image = at::randint(0, 256, {in, 1, 3}).to(at::kByte);
    const Tensor ours = resize_area_align_corners(image, out, 1);
    const double scale = out > 1 ? static_cast<double>(in - 1) / static_cast<double>(out - 1) : static_cast<double>(in);
    for (int64_t c = 0; c < 3; ++c) {
      std::vector<double> column;
      for (int64_t y = 0; y < in; ++y) column.push_back(image[y][0][c].item<double>());
      for (int64_t y = 0; y < out; ++y) {
        const double exact = area_1d(column, static_cast<double>(y) * scale, static_cast<double>(y + 1) * scale);
        EXPECT_NEAR(ours[y][0][c].item<double>(), exact, 0.5001) << in << " to " << out << " at " << y;
      }
    }
    EXPECT_TRUE(in == 6 || ours[out - 1].equal(image[in - 1]));  // corners meet
    const Tensor row = image.transpose(0, 1).contiguous();
    EXPECT_TRUE(resize_area_align_corners(row, 1, out).equal(ours.transpose(0, 1)));
  }
}

TEST(Resize, KeepsAFlatPictureFlat) {
  const Tensor flat = at::full({20, 13, 3}, 77, at::kByte);
  for (const auto filter : {ResizeFilter::kArea, ResizeFilter::kBicubic, ResizeFilter::kLanczos}) {
    for (const int64_t size : {1, 5, 13, 31})
      EXPECT_EQ(max_difference(resize(flat, size, size, filter), at::full({size, size, 3}, 77)), 0);
  }
}

TEST(Resize, ChecksItsInput) {
  EXPECT_THROW(resize(at::zeros({4, 4, 3}), 2, 2, ResizeFilter::kArea), c10::ValueError);
  EXPECT_THROW(resize(at::zeros({4, 4, 3}, at::kByte), 0, 2, ResizeFilter::kArea), c10::ValueError);
}

}  // namespace
}  // namespace dalle::data

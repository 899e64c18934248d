#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <opencv2/imgproc.hpp>

#include "dalle/generation/picture_writer.h"

namespace dalle::generation {
namespace {

// Hershey fonts are strokes: drawn this many times larger and reduced by area they come out evenly grey at any size.
constexpr int kOversample = 4;
constexpr int kFont = cv::FONT_HERSHEY_DUPLEX;
constexpr double kFontCapHeight = 21.0;  // of a capital letter at scale 1, px
constexpr double kCapHeight = 0.72;      // of a capital letter, as a share of the text's size
constexpr double kTopMargin = 0.18;

struct Pen {
  double scale;
  int thickness;
};

Pen make_pen(const TextStyle& style) {
  const double size = kOversample * static_cast<double>(style.size);
  const double stroke = size * (style.bold ? 0.11 : 0.078);
  return {kCapHeight * size / kFontCapHeight, std::max(1, static_cast<int>(std::lround(stroke)))};
}

}  // namespace

int64_t coverage_width(const std::string& ascii, const TextStyle& style) {
  if (ascii.empty()) return 0;
  const Pen pen = make_pen(style);
  int below_baseline = 0;
  const int width = cv::getTextSize(ascii, kFont, pen.scale, pen.thickness, &below_baseline).width;
  return (width + kOversample - 1) / kOversample;
}

Tensor text_coverage(const std::string& ascii, const TextStyle& style) {
  const int height = static_cast<int>(line_height(style));
  const int width = static_cast<int>(coverage_width(ascii, style));
  Tensor coverage = at::zeros({height, width}, at::kByte);
  if (width == 0) return coverage;
  const Pen pen = make_pen(style);
  cv::Mat large = cv::Mat::zeros(height * kOversample, width * kOversample, CV_8UC1);
  const double baseline = kOversample * (kTopMargin + kCapHeight) * static_cast<double>(style.size);
  cv::putText(large, ascii, {0, static_cast<int>(std::lround(baseline))}, kFont, pen.scale, cv::Scalar(255),
              pen.thickness, cv::LINE_AA);
  cv::Mat small(height, width, CV_8UC1, coverage.data_ptr<uint8_t>());
  cv::resize(large, small, small.size(), 0, 0, cv::INTER_AREA);
  return coverage;
}

}  // namespace dalle::generation

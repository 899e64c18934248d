#include <ATen/ATen.h>

#include <cstring>
#include <opencv2/imgcodecs.hpp>
#include <opencv2/imgproc.hpp>
#include <vector>

#include "dalle/core/error.h"
#include "dalle/core/str.h"
#include "dalle/data/exif_orientation.h"
#include "dalle/data/image_codec.h"

namespace dalle::data {
namespace {

[[noreturn]] void fail(const std::string& got) {
  throw DataError(Problem{.place = "picture", .expected = "a whole PNG, JPEG or WebP picture", .got = got});
}

/// OpenCV reads many other formats, some of them through large libraries that nobody asked for.
void check_kind(std::string_view bytes) {
  if (bytes.empty()) fail("no bytes");
  if (!begins_like_picture(bytes)) fail(str(bytes.size(), " bytes of another kind"));
  if (is_jpeg_cut_short(bytes)) fail(str("a JPEG cut short after ", bytes.size(), " bytes"));
}

/// 8 bits a channel, 1 to 4 channels, upright.
cv::Mat decode_upright(std::string_view bytes) {
  static const bool single_threaded = (cv::setNumThreads(1), true);  // the loader has its own threads
  (void)single_threaded;
  cv::Mat image;
  try {
    const cv::Mat buffer(1, static_cast<int>(bytes.size()), CV_8U, const_cast<char*>(bytes.data()));
    image = cv::imdecode(buffer, cv::IMREAD_UNCHANGED);
  } catch (const cv::Exception& error) {
    fail(str("a decoder error: ", error.err));
  }
  if (image.empty()) fail(str(bytes.size(), " bytes that do not decode"));
  if (image.depth() == CV_16U) image.convertTo(image, CV_8U, 1 / 257.0);
  if (image.depth() != CV_8U) fail("channels that are neither 8 nor 16 bits");
  const int orientation = exif_orientation(bytes);
  if (orientation >= 5) cv::transpose(image, image);  // 5: transposed; 6, 7, 8 are 5 and flips
  const bool flip_columns = orientation == 2 || orientation == 3 || orientation == 6 || orientation == 7;
  const bool flip_rows = orientation == 3 || orientation == 4 || orientation == 7 || orientation == 8;
  if (flip_columns) cv::flip(image, image, 1);
  if (flip_rows) cv::flip(image, image, 0);
  return image;
}

/// BGRA -> RGB over the background; straight alpha, rounded to nearest.
cv::Mat flatten(const cv::Mat& image, const Background& background) {
  cv::Mat flat(image.rows, image.cols, CV_8UC3);
  const int under[3] = {background.red, background.green, background.blue};
  for (int y = 0; y < image.rows; ++y) {
    const uint8_t* in = image.ptr<uint8_t>(y);
    uint8_t* out = flat.ptr<uint8_t>(y);
    for (int x = 0; x < image.cols; ++x, in += 4, out += 3) {
      const int alpha = in[3];
      for (int c = 0; c < 3; ++c) {
        out[c] = static_cast<uint8_t>((in[2 - c] * alpha + under[c] * (255 - alpha) + 127) / 255);
      }
    }
  }
  return flat;
}

cv::Mat to_bgr(const Tensor& image_HW3) {
  TORCH_CHECK_VALUE(image_HW3.dim() == 3 && image_HW3.size(2) == 3 && image_HW3.scalar_type() == at::kByte,
                    "[encode picture] expected uint8 [H, W, 3], got ", image_HW3.scalar_type(), " ", image_HW3.sizes());
  const Tensor image = image_HW3.cpu().contiguous();
  const cv::Mat rgb(static_cast<int>(image.size(0)), static_cast<int>(image.size(1)), CV_8UC3,
                    image.mutable_data_ptr<uint8_t>());
  cv::Mat bgr;
  cv::cvtColor(rgb, bgr, cv::COLOR_RGB2BGR);
  return bgr;
}

std::string encode(const Tensor& image_HW3, const char* extension, const std::vector<int>& options) {
  std::vector<uint8_t> bytes;
  const bool done = cv::imencode(extension, to_bgr(image_HW3), bytes, options);
  TORCH_INTERNAL_ASSERT(done, "OpenCV could not encode a picture");
  return std::string(bytes.begin(), bytes.end());
}

}  // namespace

Tensor decode_picture(std::string_view bytes, const Background& background) {
  check_kind(bytes);
  cv::Mat image = decode_upright(bytes);
  switch (image.channels()) {
    case 1:
      cv::cvtColor(image, image, cv::COLOR_GRAY2RGB);
      break;
    case 3:
      cv::cvtColor(image, image, cv::COLOR_BGR2RGB);
      break;
    case 4:
      image = flatten(image, background);
      break;
    default:
      fail(str(image.channels(), " channels"));
  }
  Tensor result = at::empty({image.rows, image.cols, 3}, at::kByte);
  const auto row_bytes = static_cast<size_t>(3 * image.cols);
  for (int y = 0; y < image.rows; ++y) {
    std::memcpy(result.mutable_data_ptr<uint8_t>() + static_cast<size_t>(y) * row_bytes, image.ptr(y), row_bytes);
  }
  return result;
}

std::string encode_png(const Tensor& image_HW3) { return encode(image_HW3, ".png", {}); }

std::string encode_jpeg(const Tensor& image_HW3, int quality) {
  return encode(image_HW3, ".jpg", {cv::IMWRITE_JPEG_QUALITY, quality});
}

}  // namespace dalle::data

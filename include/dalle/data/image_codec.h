// Pictures from and to bytes. Everything that needs OpenCV is behind these functions (image_codec_opencv.cpp, or
// image_codec_stub.cpp, whose functions throw ConfigError), in a library of its own.
// Resizing is not here: OpenCV's filters do not antialias, so data/resize.h has its own.
//
// Shapes: H height, W width; channels are R, G, B.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "dalle/core/tensor.h"

namespace dalle::data {

/// The colour under transparent pixels.
struct Background {
  uint8_t red = 255;
  uint8_t green = 255;
  uint8_t blue = 255;
};

/// Whether bytes begin as a PNG, JPEG or WebP picture does.
inline bool begins_like_picture(std::string_view bytes) {
  const bool is_webp = bytes.starts_with("RIFF") && bytes.size() >= 12 && bytes.substr(8, 4) == "WEBP";
  return bytes.starts_with("\x89PNG") || bytes.starts_with("\xFF\xD8\xFF") || is_webp;
}

/// Decodes PNG, JPEG or WebP to uint8 [H, W, 3]: EXIF orientation applied, alpha put on `background`, grey, palette,
/// 16-bit and CMYK pictures converted. Colour profiles are ignored. Throws DataError where the bytes are not a whole
/// picture of such a kind.
Tensor decode_picture(std::string_view bytes, const Background& background = {});

/// PNG of a uint8 [H, W, 3] picture.
std::string encode_png(const Tensor& image_HW3);

/// JPEG of a uint8 [H, W, 3] picture; `quality` in [1, 100].
std::string encode_jpeg(const Tensor& image_HW3, int quality = 95);

}  // namespace dalle::data

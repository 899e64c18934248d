#include "dalle/data/transforms.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "dalle/core/error.h"
#include "dalle/core/str.h"

namespace dalle::data {
namespace {

/// a / b of the picture size, rounded to nearest: exact for the listings' sizes.
int64_t scaled(int64_t size, int64_t numerator, int64_t denominator) {
  return (2 * size * numerator + denominator) / (2 * denominator);
}

/// Offset of the near-centre crop of stage 2 in one axis of length `length`.
int64_t near_centre(RandomStream& stream, int64_t length, int64_t side) {
  const int64_t low = 3 * (length - side) / 8;
  const int64_t high = std::max(low + 1, 5 * (length - side) / 8);
  return stream.integer(low, high - 1);
}

void draw_stage(const TransformOptions& options, int64_t height, int64_t width, RandomStream& stream,
                AugmentationDraw& draw) {
  const int64_t side = std::min(height, width);
  const int64_t size = options.image_size;
  const bool stage1 = options.augmentation == Augmentation::kStage1;
  draw.square_size = side;
  draw.square_top = stage1 ? stream.integer(0, height - side) : near_centre(stream, height, side);
  draw.square_left = stage1 ? stream.integer(0, width - side) : near_centre(stream, width, side);
  const int64_t low = stage1 ? std::min(side, scaled(size, 9, 8)) : size;
  const int64_t high = std::min(side, stage1 ? scaled(size, 3, 2) : scaled(size, 9, 8));
  draw.resized_height = draw.resized_width = stream.integer(low, high);
  draw.crop_top = stream.integer(0, draw.resized_height - size);
  draw.crop_left = stream.integer(0, draw.resized_width - size);
}

/// Offset of a crop of `size` in the centre of `length`. Halves round to even, as torchvision's center_crop does.
int64_t centre_offset(int64_t length, int64_t size) {
  return std::llrint(std::nearbyint(static_cast<double>(length - size) / 2));
}

void place_in_centre(const TransformOptions& options, int64_t height, int64_t width, AugmentationDraw& draw) {
  const int64_t size = options.image_size;
  const int64_t side = std::min(height, width);
  const auto in_proportion = [&](int64_t length) {
    return std::max(size, static_cast<int64_t>(std::llround(static_cast<double>(length) * static_cast<double>(size) /
                                                            static_cast<double>(side))));
  };
  draw.resized_height = in_proportion(height);
  draw.resized_width = in_proportion(width);
  draw.crop_top = centre_offset(draw.resized_height, size);
  draw.crop_left = centre_offset(draw.resized_width, size);
}

}  // namespace

AugmentationDraw draw_augmentation(const TransformOptions& options, int64_t height, int64_t width, RandomKey key) {
  if (std::min(height, width) < options.image_size) {
    throw DataError(Problem{.place = "picture",
                            .expected = str("a shorter side of at least ", options.image_size, " pixels"),
                            .got = str(width, " x ", height, " (width x height)"),
                            .hint = "remove small pictures, lower the picture size or set upscale_small: true"});
  }
  RandomStream stream(key);
  AugmentationDraw draw;
  if (options.augmentation == Augmentation::kNone) {
    place_in_centre(options, height, width, draw);
  } else {
    draw_stage(options, height, width, stream, draw);
  }
  draw.flip = stream.uniform() < 0.5 && options.horizontal_flip;
  return draw;
}

Tensor apply_augmentation(const Tensor& image_HW3, const TransformOptions& options, const AugmentationDraw& draw) {
  const int64_t size = options.image_size;
  Tensor image = image_HW3;
  if (draw.square_size > 0) {
    image = image.narrow(0, draw.square_top, draw.square_size).narrow(1, draw.square_left, draw.square_size);
    image = resize_area_align_corners(image, draw.resized_height, draw.resized_width);
  } else {
    image = resize(image, draw.resized_height, draw.resized_width, options.filter);
  }
  image = image.narrow(0, draw.crop_top, size).narrow(1, draw.crop_left, size);
  if (draw.flip) image = image.flip(1);
  return image.permute({2, 0, 1}).contiguous();
}

namespace {

/// Enlarged until its shorter side is a picture's, a line of pixels would fill the memory.
void refuse_thin(int64_t height, int64_t width) {
  constexpr int64_t kThinnest = 64;
  if (std::max(height, width) <= kThinnest * std::min(height, width)) return;
  throw DataError(Problem{.place = "picture",
                          .expected = str("sides of at most ", kThinnest, " to 1, to be enlarged"),
                          .got = str(width, " x ", height, " (width x height)")});
}

}  // namespace

Tensor transform_picture(const Tensor& image_HW3, const TransformOptions& options, RandomKey key) {
  Tensor image = image_HW3;
  const int64_t side = std::min(image.size(0), image.size(1));
  if (options.upscale_small && side < options.image_size) {
    refuse_thin(image.size(0), image.size(1));
    const double factor = static_cast<double>(options.image_size) / static_cast<double>(side);
    const auto enlarged = [&](int64_t n) {
      return static_cast<int64_t>(std::llround(static_cast<double>(n) * factor));
    };
    image = resize(image, enlarged(image.size(0)), enlarged(image.size(1)), ResizeFilter::kBicubic);
  }
  return apply_augmentation(image, options, draw_augmentation(options, image.size(0), image.size(1), key));
}

Tensor clip_picture(const Tensor& image_HW3, int64_t size) {
  const int64_t height = image_HW3.size(0), width = image_HW3.size(1), side = std::min(height, width);
  if (side < size) refuse_thin(height, width);
  const Tensor resized =
      resize(image_HW3, size * height / side, size * width / side, ResizeFilter::kBicubic);  // rounds down
  const int64_t top = centre_offset(resized.size(0), size), left = centre_offset(resized.size(1), size);
  return resized.narrow(0, top, size).narrow(1, left, size).permute({2, 0, 1}).contiguous();
}

}  // namespace dalle::data

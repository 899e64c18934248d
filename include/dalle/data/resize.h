// Resizing of 8-bit pictures with filters that average over the source when shrinking (OpenCV's do not, except AREA).
// H height, W width.
#pragma once

#include <cstdint>

#include "dalle/core/enum_names.h"
#include "dalle/core/tensor.h"

namespace dalle::data {

enum class ResizeFilter { kArea, kBicubic, kLanczos };

/// uint8 [height, width, 3] of a uint8 [H, W, 3]. area: mean over the pixel's footprint. bicubic (a = -0.5) and lanczos
/// (3 lobes): as Pillow computes them, equal to it within one level (columns first, 8 bits between, as up to Pillow
/// 12).
Tensor resize(const Tensor& image_HW3, int64_t height, int64_t width, ResizeFilter filter);

/// TensorFlow's resize with method AREA and align_corners=True, as in the paper's Listings 1 and 2: output pixel i
/// averages [i s, (i + 1) s) with s = (in - 1) / (out - 1), the last source pixel repeated; rounded to nearest even.
Tensor resize_area_align_corners(const Tensor& image_HW3, int64_t height, int64_t width);

}  // namespace dalle::data

namespace dalle {
template <>
struct EnumNames<data::ResizeFilter> {
  static constexpr EnumName<data::ResizeFilter> values[] = {{data::ResizeFilter::kArea, "area"},
                                                            {data::ResizeFilter::kBicubic, "bicubic"},
                                                            {data::ResizeFilter::kLanczos, "lanczos"}};
};
}  // namespace dalle

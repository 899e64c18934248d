// From a decoded picture to a model's square input: the paper's augmentations for stage 1 (Listing 1) and stage 2
// (Listing 2), and the plain form for evaluation and sampling.
//
// The listings' constants scale with the picture size S (S = 256 gives 288 and 384). s is the shorter side, which must
// reach S. h: height, for the offsets in the other axis the width. All ranges of integers include both ends.
//   stage1: crop s x s anywhere; resize to t x t, t in [min(s, 9/8 S), min(s, 3/2 S)]; crop S x S anywhere.
//   stage2: crop s x s near the centre, offsets from a = floor(3(h-s)/8) to max(a + 1, floor(5(h-s)/8)) - 1;
//           resize to t x t, t in [S, min(s, 9/8 S)]; crop S x S anywhere.
//   none:   shorter side to S with the configured filter, the longer in proportion; crop S x S in the centre.
// Stages resize with TensorFlow's AREA and align_corners, whatever the configured filter. Flipping is a key of its own:
// the paper flips in stage 1 only, because pictures may hold text.
#pragma once

#include <cstdint>

#include "dalle/core/enum_names.h"
#include "dalle/core/random.h"
#include "dalle/core/tensor.h"
#include "dalle/data/resize.h"

namespace dalle::data {

enum class Augmentation { kNone, kStage1, kStage2 };

struct TransformOptions {
  int64_t image_size = 256;
  Augmentation augmentation = Augmentation::kNone;
  bool horizontal_flip = false;
  ResizeFilter filter = ResizeFilter::kArea;
  bool upscale_small = false;  // enlarge pictures whose shorter side is below image_size (bicubic) instead of refusing
};

/// Every decision about one picture. Sizes and offsets are pixels of the picture at that point.
struct AugmentationDraw {
  int64_t square_size = 0;  // side of the first, square crop; 0 = no first crop (none)
  int64_t square_top = 0;
  int64_t square_left = 0;
  int64_t resized_height = 0;
  int64_t resized_width = 0;
  int64_t crop_top = 0;
  int64_t crop_left = 0;
  bool flip = false;
};

/// Draws in this order: square_top, square_left, t, crop_top, crop_left, flip (none: flip alone, even where flipping is
/// off). Throws DataError where s < S.
AugmentationDraw draw_augmentation(const TransformOptions& options, int64_t height, int64_t width, RandomKey key);

/// uint8 [3, S, S] of a uint8 [H, W, 3] picture of the size that `draw` was made for.
Tensor apply_augmentation(const Tensor& image_HW3, const TransformOptions& options, const AugmentationDraw& draw);

/// Both, after enlarging small pictures where the options say so.
Tensor transform_picture(const Tensor& image_HW3, const TransformOptions& options, RandomKey key);

/// CLIP's preprocessing but for the last step, mean and deviation (openai/CLIP clip/clip.py, open_clip transform.py: torchvision's
/// Resize and CenterCrop of Pillow pictures): the shorter side to `size` by the bicubic filter, smaller pictures too, the longer in
/// proportion and rounded down; crop in the centre. uint8 [H, W, 3] -> [3, size, size]; within one level of Pillow's fixed-point sums.
/// Throws DataError of one whose shorter side would be enlarged and whose sides are more than 64 to 1, as transform_picture()
/// does: its longer one would fill the memory.
Tensor clip_picture(const Tensor& image_HW3, int64_t size);

}  // namespace dalle::data

namespace dalle {
template <>
struct EnumNames<data::Augmentation> {
  static constexpr EnumName<data::Augmentation> values[] = {{data::Augmentation::kNone, "none"},
                                                            {data::Augmentation::kStage1, "stage1"},
                                                            {data::Augmentation::kStage2, "stage2"}};
};
}  // namespace dalle

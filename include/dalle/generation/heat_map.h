// A grid of numbers as a picture: coloured cells with a scale beside them.
#pragma once

#include <string>

#include "dalle/core/tensor.h"

namespace dalle::generation {

struct HeatMapOptions {
  std::string title;     // at most two lines
  std::string subtitle;  // at most three lines
  std::string unit;      // over the scale: "nats"
  int64_t size = 512;    // side of the map, px; cells are whole numbers of pixels, so it may come out smaller
};

/// values [H, W], any type and device. Dark is low and bright is high (the colours of "viridis", which keep their order in
/// grey and for colour-blind eyes); the scale goes from the smallest to the largest value. Cells that are not finite are
/// red. u8 [h, w, 3]. Throws c10::ValueError for an empty or other-dimensional tensor.
Tensor heat_map(const Tensor& values, const HeatMapOptions& options);

}  // namespace dalle::generation

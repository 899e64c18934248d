// Heat maps: which colour a value gets, sizes, values that are no numbers.
#include "dalle/generation/heat_map.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace dalle::generation {
namespace {

/// Side of a cell in a map of `count` cells a side with the default size.
constexpr int64_t cell_side(int64_t count) { return 512 / count; }

/// The colour in the middle of a cell; the map is at the bottom left, 28 px from the edges.
std::array<int, 3> colour_of(const Tensor& sheet, int64_t rows, int64_t row, int64_t column, int64_t cell) {
  const int64_t y = sheet.size(0) - 28 - (rows - row) * cell + cell / 2, x = 28 + column * cell + cell / 2;
  return {sheet[y][x][0].item<int>(), sheet[y][x][1].item<int>(), sheet[y][x][2].item<int>()};
}

TEST(HeatMap, TheLowestIsDarkAndTheHighestBright) {
  const Tensor values = at::arange(16).view({4, 4}) * 0.25;
  const Tensor sheet = heat_map(values, {.title = "loss", .unit = "nats"});
  EXPECT_EQ(sheet.scalar_type(), at::kByte);
  EXPECT_EQ(colour_of(sheet, 4, 0, 0, cell_side(4)), (std::array<int, 3>{68, 1, 84}));
  EXPECT_EQ(colour_of(sheet, 4, 3, 3, cell_side(4)), (std::array<int, 3>{253, 231, 37}));
  int before = -1;
  for (int64_t i = 0; i < 16; ++i) {
    const auto colour = colour_of(sheet, 4, i / 4, i % 4, cell_side(4));
    const int brightness = 299 * colour[0] + 587 * colour[1] + 114 * colour[2];
    EXPECT_GT(brightness, before) << "brighter with every value: " << i;
    before = brightness;
  }
}

TEST(HeatMap, ThirtyTwoSquaredCellsAreWholePixels) {
  const Tensor sheet = heat_map(at::rand({32, 32}), {.title = "loss by position", .subtitle = "step 100"});
  EXPECT_EQ(cell_side(32), 16);
  EXPECT_GT(sheet.size(0), 512);
  EXPECT_LT(sheet.size(0), 700);
  EXPECT_GT(sheet.size(1), 512 + 80);
}

TEST(HeatMap, WhatIsNotFiniteIsRedAndDoesNotMoveTheScale) {
  Tensor values = at::tensor({1.0, 2.0, 3.0, 3.0}, at::kDouble).view({2, 2});
  values[1][0] = std::numeric_limits<double>::quiet_NaN();
  const Tensor sheet = heat_map(values, {});
  EXPECT_EQ(colour_of(sheet, 2, 1, 0, cell_side(2)), (std::array<int, 3>{217, 48, 37}));
  EXPECT_EQ(colour_of(sheet, 2, 0, 0, cell_side(2)), (std::array<int, 3>{68, 1, 84}));
  EXPECT_EQ(colour_of(sheet, 2, 1, 1, cell_side(2)), (std::array<int, 3>{253, 231, 37}));
}

TEST(HeatMap, AFlatMapHasOneColour) {
  const Tensor sheet = heat_map(at::full({2, 3}, 5), {});
  EXPECT_EQ(colour_of(sheet, 2, 0, 0, 512 / 3), colour_of(sheet, 2, 1, 2, 512 / 3));
}

TEST(HeatMap, OtherShapesAreRefused) {
  EXPECT_THROW(heat_map(at::rand({4}), {}), c10::ValueError);
  EXPECT_THROW(heat_map(at::rand({0, 4}), {}), c10::ValueError);
}

}  // namespace
}  // namespace dalle::generation

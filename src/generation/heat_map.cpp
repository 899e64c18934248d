#include "dalle/generation/heat_map.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "dalle/generation/picture_writer.h"

namespace dalle::generation {
namespace {

constexpr Colour kNotFinite = {217, 48, 37};

constexpr int64_t kScaleGap = 20;    // between map and scale
constexpr int64_t kScaleWidth = 18;  // of the coloured bar
constexpr int64_t kTickRoom = 80;    // right of the bar, for numbers
constexpr int64_t kNumTicks = 5;

const TextStyle kMapTitle{.size = 22, .bold = true};
const TextStyle kMapSubtitle{.size = 14, .colour = kSoftInk};
const TextStyle kTickStyle{.size = 14, .colour = kSoftInk};

// Viridis (van der Walt and Smith, CC0) at nine points; between them colours are mixed.
constexpr Colour kViridis[] = {{68, 1, 84},    {71, 44, 122}, {59, 81, 139},  {44, 113, 142}, {33, 144, 141},
                               {39, 173, 129}, {92, 200, 99}, {170, 220, 50}, {253, 231, 37}};

Colour colour_at(double share) {
  const double place = std::clamp(share, 0.0, 1.0) * (std::size(kViridis) - 1);
  const auto below = std::min(static_cast<size_t>(place), std::size(kViridis) - 2);
  Colour colour{};
  for (size_t channel = 0; channel < 3; ++channel) {
    const double a = kViridis[below][channel], b = kViridis[below + 1][channel];
    colour[channel] = static_cast<uint8_t>(std::lround(a + (b - a) * (place - static_cast<double>(below))));
  }
  return colour;
}

// With the decimals that tell neighbouring ticks apart.
std::string tick_text(double value, double tick_step) {
  const int decimals = tick_step > 0 ? std::clamp(static_cast<int>(std::ceil(1 - std::log10(tick_step))), 0, 6) : 2;
  char text[32];
  std::snprintf(text, sizeof text, "%.*f", decimals, value);
  return text;
}

struct Range {
  double low = 0, high = 0;
  double share(double value) const { return high > low ? (value - low) / (high - low) : 0.5; }
};

Range finite_range(const Tensor& values) {
  const Tensor finite = values.masked_select(values.isfinite());
  if (finite.numel() == 0) return {};
  return {finite.min().item<double>(), finite.max().item<double>()};
}

void draw_scale(Tensor& sheet, int64_t top, int64_t left, int64_t height, const Range& range) {
  for (int64_t y = 0; y < height; ++y) {
    const double share = 1 - static_cast<double>(y) / static_cast<double>(std::max<int64_t>(1, height - 1));
    fill_rectangle(sheet, top + y, left, 1, kScaleWidth, colour_at(share));
  }
  const int64_t num_ticks = range.high > range.low ? kNumTicks : 1;
  const double tick_step = (range.high - range.low) / static_cast<double>(kNumTicks - 1);
  for (int64_t tick = 0; tick < num_ticks; ++tick) {
    const double share = num_ticks == 1 ? 0.5 : static_cast<double>(tick) / static_cast<double>(num_ticks - 1);
    const auto y = static_cast<int64_t>(std::lround((1 - share) * static_cast<double>(height - 1)));
    fill_rectangle(sheet, top + y, left + kScaleWidth, 1, 5, kSoftInk);
    draw_text(sheet, top + y - line_height(kTickStyle) / 2, left + kScaleWidth + 9,
              tick_text(range.low + share * (range.high - range.low), tick_step), kTickStyle);
  }
}

}  // namespace

Tensor heat_map(const Tensor& values, const HeatMapOptions& options) {
  TORCH_CHECK_VALUE(values.dim() == 2 && values.numel() > 0 && options.size >= 1,
                    "a heat map needs values [H, W], got shape ", values.sizes());
  const Tensor grid = values.to(at::kCPU, at::kDouble).contiguous();
  const int64_t rows = grid.size(0), columns = grid.size(1);
  const int64_t cell = std::max<int64_t>(1, options.size / std::max(rows, columns));
  const int64_t map_height = rows * cell, map_width = columns * cell;
  const int64_t scale_room = std::max(kScaleWidth + kTickRoom, text_width(plain_ascii(options.unit), kTickStyle));
  const int64_t width = std::max<int64_t>(320, map_width + kScaleGap + scale_room);
  const auto title = wrap_text(options.title, kMapTitle, width, 2);
  const auto subtitle = wrap_text(options.subtitle, kMapSubtitle, width, 3);
  const int64_t header = static_cast<int64_t>(title.size()) * line_height(kMapTitle) +
                         static_cast<int64_t>(subtitle.size()) * line_height(kMapSubtitle) + 4;
  const int64_t unit_room = line_height(kTickStyle) + 10;

  Tensor sheet = blank_picture(2 * kSheetMargin + header + unit_room + map_height, 2 * kSheetMargin + width, kPaper);
  int64_t top = kSheetMargin;
  top += draw_lines(sheet, top, kSheetMargin, width, title, kMapTitle, TextAlign::kLeft) + 4;
  top += draw_lines(sheet, top, kSheetMargin, width, subtitle, kMapSubtitle, TextAlign::kLeft);
  const int64_t scale_left = kSheetMargin + map_width + kScaleGap;
  draw_text(sheet, top, scale_left, plain_ascii(options.unit), kTickStyle);
  top = kSheetMargin + header + unit_room;

  const Range range = finite_range(grid);
  fill_rectangle(sheet, top - 1, kSheetMargin - 1, map_height + 2, map_width + 2, kHairline);
  const double* data = grid.const_data_ptr<double>();
  for (int64_t row = 0; row < rows; ++row) {
    for (int64_t column = 0; column < columns; ++column) {
      const double value = data[row * columns + column];
      fill_rectangle(sheet, top + row * cell, kSheetMargin + column * cell, cell, cell,
                     std::isfinite(value) ? colour_at(range.share(value)) : kNotFinite);
    }
  }
  draw_scale(sheet, top, scale_left, map_height, range);
  return sheet;
}

}  // namespace dalle::generation

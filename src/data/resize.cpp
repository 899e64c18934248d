#include "dalle/data/resize.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numbers>
#include <vector>

namespace dalle::data {
namespace {

/// Weights of one axis: output i is the sum over k of weights[begin[i] + k] * source[first[i] + k].
struct AxisWeights {
  std::vector<int64_t> first;
  std::vector<size_t> begin{0};
  std::vector<float> weights;

  void add(int64_t first_index, const std::vector<double>& row) {
    double sum = 0;
    for (const double w : row) sum += w;
    first.push_back(first_index);
    for (const double w : row) weights.push_back(static_cast<float>(w / sum));
    begin.push_back(weights.size());
  }
};

/// Mean over [i scale, (i + 1) scale), in source pixels; what lies past the end repeats the last pixel.
AxisWeights area_weights(int64_t in, int64_t out, double scale) {
  AxisWeights axis;
  for (int64_t i = 0; i < out; ++i) {
    const double low = static_cast<double>(i) * scale;
    const double high = low + scale;
    const auto first = std::min(static_cast<int64_t>(low), in - 1);
    const auto last = std::clamp(static_cast<int64_t>(std::ceil(high - 1e-9)), first + 1, std::max(in, first + 1));
    std::vector<double> row(static_cast<size_t>(last - first), 0.0);
    for (int64_t j = first; j < last; ++j) {
      const double overlap =
          std::min<double>(high, static_cast<double>(j + 1)) - std::max<double>(low, static_cast<double>(j));
      row[static_cast<size_t>(j - first)] = std::max(overlap, 0.0);
    }
    row.back() += std::max(0.0, high - std::max(static_cast<double>(last), low));
    axis.add(first, row);
  }
  return axis;
}

double bicubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

double lanczos(double x) {
  if (x == 0) return 1;
  if (std::abs(x) >= 3) return 0;
  const double pi_x = std::numbers::pi * x;
  return 3 * std::sin(pi_x) * std::sin(pi_x / 3) / (pi_x * pi_x);
}

/// A kernel centred on the output pixel and stretched by the shrinking factor.
AxisWeights kernel_weights(int64_t in, int64_t out, double support, double (*kernel)(double)) {
  AxisWeights axis;
  const double scale = static_cast<double>(in) / static_cast<double>(out);
  const double stretch = std::max(scale, 1.0);
  for (int64_t i = 0; i < out; ++i) {
    const double center = (static_cast<double>(i) + 0.5) * scale;
    const auto first = std::max<int64_t>(0, static_cast<int64_t>(center - support * stretch + 0.5));
    const auto last = std::min<int64_t>(in, static_cast<int64_t>(center + support * stretch + 0.5));
    std::vector<double> row;
    for (int64_t j = first; j < last; ++j) row.push_back(kernel((static_cast<double>(j) - center + 0.5) / stretch));
    axis.add(first, row);
  }
  return axis;
}

/// Resizes rows of `row_size` interleaved values: out[i][k] = sum over j of w[i][j] * in[j][k].
void blend_rows(const AxisWeights& axis, const float* in, int64_t row_size, float* out) {
  for (size_t i = 0; i < axis.first.size(); ++i) {
    float* target = out + static_cast<int64_t>(i) * row_size;
    std::fill(target, target + row_size, 0.0f);
    for (size_t k = axis.begin[i]; k < axis.begin[i + 1]; ++k) {
      const float weight = axis.weights[k];
      const float* source = in + (axis.first[i] + static_cast<int64_t>(k - axis.begin[i])) * row_size;
      for (int64_t x = 0; x < row_size; ++x) target[x] += weight * source[x];
    }
  }
}

float to_level(float value) { return std::nearbyint(std::clamp(value, 0.0f, 255.0f)); }

/// Columns first, then rows, as Pillow; `round_between`: the intermediate picture has 8 bits too.
Tensor apply(const Tensor& image_HW3, const AxisWeights& rows, const AxisWeights& columns, bool round_between) {
  TORCH_CHECK_VALUE(image_HW3.dim() == 3 && image_HW3.size(2) == 3 && image_HW3.scalar_type() == at::kByte,
                    "[resize] expected uint8 [H, W, 3], got ", image_HW3.scalar_type(), " ", image_HW3.sizes());
  const Tensor source = image_HW3.contiguous();
  const int64_t in_height = source.size(0);
  const int64_t in_width = source.size(1);
  const auto width = static_cast<int64_t>(columns.first.size());
  const auto height = static_cast<int64_t>(rows.first.size());
  std::vector<float> line(static_cast<size_t>(3 * in_width));
  std::vector<float> middle(static_cast<size_t>(in_height * width * 3));
  for (int64_t y = 0; y < in_height; ++y) {
    const uint8_t* bytes = source.const_data_ptr<uint8_t>() + y * 3 * in_width;
    std::copy(bytes, bytes + 3 * in_width, line.begin());
    blend_rows(columns, line.data(), 3, middle.data() + y * width * 3);
  }
  if (round_between) std::transform(middle.begin(), middle.end(), middle.begin(), to_level);
  std::vector<float> result(static_cast<size_t>(height * width * 3));
  blend_rows(rows, middle.data(), width * 3, result.data());
  Tensor out = at::empty({height, width, 3}, at::kByte);
  std::transform(result.begin(), result.end(), out.mutable_data_ptr<uint8_t>(),
                 [](float value) { return static_cast<uint8_t>(to_level(value)); });
  return out;
}

AxisWeights axis_weights(int64_t in, int64_t out, ResizeFilter filter) {
  TORCH_CHECK_VALUE(in >= 1 && out >= 1, "[resize] sizes must be at least 1, got ", in, " to ", out);
  switch (filter) {
    case ResizeFilter::kBicubic:
      return kernel_weights(in, out, 2, bicubic);
    case ResizeFilter::kLanczos:
      return kernel_weights(in, out, 3, lanczos);
    case ResizeFilter::kArea:
      break;
  }
  return area_weights(in, out, static_cast<double>(in) / static_cast<double>(out));
}

AxisWeights aligned_weights(int64_t in, int64_t out) {
  TORCH_CHECK_VALUE(in >= 1 && out >= 1, "[resize] sizes must be at least 1, got ", in, " to ", out);
  const double scale = out > 1 ? static_cast<double>(in - 1) / static_cast<double>(out - 1) : static_cast<double>(in);
  return area_weights(in, out, scale);
}

}  // namespace

Tensor resize(const Tensor& image_HW3, int64_t height, int64_t width, ResizeFilter filter) {
  if (image_HW3.size(0) == height && image_HW3.size(1) == width) return image_HW3;
  const bool round_between = filter != ResizeFilter::kArea;
  return apply(image_HW3, axis_weights(image_HW3.size(0), height, filter),
               axis_weights(image_HW3.size(1), width, filter), round_between);
}

Tensor resize_area_align_corners(const Tensor& image_HW3, int64_t height, int64_t width) {
  if (image_HW3.size(0) == height && image_HW3.size(1) == width) return image_HW3;
  return apply(image_HW3, aligned_weights(image_HW3.size(0), height), aligned_weights(image_HW3.size(1), width), false);
}

}  // namespace dalle::data

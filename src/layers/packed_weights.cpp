#include "dalle/layers/packed_weights.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "dalle/core/bf16.h"
#include "dalle/core/vectorise.h"
#include "packed_kernels.h"

namespace dalle::layers {
namespace {

using detail::kPanelColumns;
constexpr int64_t kRowChunk = 96;  // rows whose sums for a panel wait in a buffer of 24 KiB
// Depth of one call of a kernel. Sums of integers (127 * 32767 * 512) still fit 32 bits, f32 sums of sums lose less than one
// long sum, and a panel's stretch stays in the L2 while several tiles of rows read it.
constexpr int64_t kDepthBlock = 512;
constexpr int64_t kThreadWork = 1 << 16;  // multiply-adds that are worth waking a thread for
constexpr float kLargest8 = 127, kLargest16 = 32767;

struct Shape {
  int64_t step;   // neighbours along the depth that lie together
  int64_t bytes;  // of a number
  int64_t head;   // numbers of each column before a stretch's first
  int64_t tile;   // numbers of a column that kernels take at least

  constexpr int64_t padded(int64_t depth) const { return (depth + tile - 1) / tile * tile; }
  /// Numbers of one column up to depth k, where a stretch begins.
  constexpr int64_t stretch(int64_t k) const { return k + k / kDepthBlock * head; }
  /// Of a whole column.
  constexpr int64_t column(int64_t depth) const {
    return padded(depth) + (padded(depth) + kDepthBlock - 1) / kDepthBlock * head;
  }
  /// Where in a panel of `width` columns number (column, k) lies.
  int64_t place(int64_t column, int64_t k, int64_t width) const {
    return (k / step * step + (k / kDepthBlock + 1) * head) * width + column * step + k % step;
  }
};

constexpr Shape shape_of(WeightFormat format) {
  switch (format) {
    case WeightFormat::kF32:
      return {1, 4, 0, 1};
    case WeightFormat::kBf16:
      return {2, 2, 0, 32};
    case WeightFormat::kInt8:
      return {4, 1, 4, 64};
  }
  return {};
}

/// The format whose numbers are of this type.
template <class Weight>
constexpr Shape shape_for() {
  if constexpr (sizeof(Weight) == 4) return shape_of(WeightFormat::kF32);
  return sizeof(Weight) == 2 ? shape_of(WeightFormat::kBf16) : shape_of(WeightFormat::kInt8);
}

int64_t round_up(int64_t x, int64_t to) { return (x + to - 1) / to * to; }

DALLE_VECTORISED void to_bf16(const float* x, int64_t size, int16_t* out) {
  for (int64_t i = 0; i < size; ++i) out[i] = static_cast<int16_t>(float_to_bf16(x[i]));
}

DALLE_VECTORISED float largest_magnitude(const float* x, int64_t size) {
  uint32_t largest = 0;  // magnitudes in the order of their bits
  for (int64_t i = 0; i < size; ++i) {
    const uint32_t bits = std::bit_cast<uint32_t>(x[i]) & 0x7FFFFFFFu;
    largest = bits > largest ? bits : largest;
  }
  return std::bit_cast<float>(largest);
}

// 16-bit numbers, rounded to nearest even, plus 32768: their high and their low bytes.
DALLE_VECTORISED void to_bytes(const float* x, int64_t size, float inverse, uint8_t* high, uint8_t* low) {
  for (int64_t i = 0; i < size; ++i) {
    const auto number =
        static_cast<int32_t>(__builtin_rintf(x[i] * inverse));  // no sum that a compiler could fuse or not
    high[i] = static_cast<uint8_t>(((number + 32768) >> 8) & 0xFF);
    low[i] = static_cast<uint8_t>(number & 0xFF);
  }
}

DALLE_INLINED void finish_columns(const float* sum, int64_t width, const float* scale, float row_scale,
                                  const float* bias, float* out) {
  if (scale == nullptr && bias == nullptr) {
    for (int64_t c = 0; c < width; ++c) out[c] = sum[c];
  } else if (scale == nullptr) {
    for (int64_t c = 0; c < width; ++c) out[c] = sum[c] + bias[c];
  } else if (bias == nullptr) {
    for (int64_t c = 0; c < width; ++c) out[c] = sum[c] * (scale[c] * row_scale);
  } else {
    for (int64_t c = 0; c < width; ++c) out[c] = sum[c] * (scale[c] * row_scale) + bias[c];
  }
}

DALLE_VECTORISED void finish_row(const float* sum, int64_t width, const float* scale, float row_scale,
                                 const float* bias, float* out) {
  if (width == kPanelColumns) {  // most are: no loop over a length that is not known
    finish_columns(sum, kPanelColumns, scale, row_scale, bias, out);
  } else {
    finish_columns(sum, width, scale, row_scale, bias, out);
  }
}

// The plain loops, for processors without AVX-512 or its later parts.
DALLE_INLINED void add_part(const float* part, int64_t width, const detail::Sums& sums, int64_t row) {
  float* to = sums.at + row * sums.stride;
  for (int64_t c = 0; c < width; ++c) to[c] = sums.adds ? to[c] + part[c] : part[c];
  if (sums.scale != nullptr || sums.bias != nullptr) {
    finish_columns(to, width, sums.scale, sums.scale == nullptr ? 1 : sums.row_scale[row], sums.bias, to);
  }
}

DALLE_VECTORISED void portable_f32(const float* x, int64_t x_stride, int64_t rows, const float* panel, int64_t width,
                                   int64_t step_columns, int64_t steps, const detail::Sums& sums) {
  for (int64_t r = 0; r < rows; ++r, x += x_stride) {
    float part[kPanelColumns] = {};
    const float* w = panel;
    for (int64_t k = 0; k < steps; ++k, w += step_columns) {
      for (int64_t c = 0; c < width; ++c) part[c] += x[k] * w[c];
    }
    add_part(part, width, sums, r);
  }
}

DALLE_VECTORISED void portable_bf16(const uint16_t* x, int64_t x_stride, int64_t rows, const uint16_t* panel,
                                    int64_t width, int64_t step_columns, int64_t steps, const detail::Sums& sums) {
  for (int64_t r = 0; r < rows; ++r, x += x_stride) {
    float part[kPanelColumns] = {};
    const uint16_t* w = panel;
    for (int64_t k = 0; k < steps; ++k, w += 2 * step_columns) {
      const float even = bf16_to_float(x[2 * k]), odd = bf16_to_float(x[2 * k + 1]);
      for (int64_t c = 0; c < width; ++c) {
        part[c] += odd * bf16_to_float(w[2 * c + 1]) + even * bf16_to_float(w[2 * c]);
      }
    }
    add_part(part, width, sums, r);
  }
}

DALLE_VECTORISED void portable_int8(const uint8_t* x, int64_t x_stride, int64_t rows, const int8_t* panel,
                                    int64_t width, int64_t step_columns, int64_t steps, const detail::Sums& sums) {
  for (int64_t r = 0; r < rows; ++r, x += x_stride) {
    int32_t exact[kPanelColumns] = {};
    float part[kPanelColumns];
    const int8_t* w = panel + 4 * step_columns;  // without what takes off 32768, which is never added here
    for (int64_t k = 0; k < steps; ++k, w += 4 * step_columns) {
      const uint8_t *high = x + 4 * k, *low = high + x_stride / 2;
      int32_t number[4];
      for (int i = 0; i < 4; ++i) number[i] = 256 * high[i] + low[i] - 32768;
      for (int64_t c = 0; c < width; ++c) {
        for (int i = 0; i < 4; ++i) exact[c] += number[i] * w[4 * c + i];
      }
    }
    for (int64_t c = 0; c < width; ++c) part[c] = static_cast<float>(exact[c]);
    add_part(part, width, sums, r);
  }
}

const detail::ProductKernelSet& kernels_of(ProductKernels kernels) {
  static const detail::ProductKernelSet portable = detail::portable_kernels();
  static const detail::ProductKernelSet fastest = [] {
    detail::ProductKernelSet found = detail::amx_kernels(detail::avx512_kernels());
    if (found.f32.tile == nullptr) found.f32 = portable.f32;
    if (found.bf16.tile == nullptr) found.bf16 = portable.bf16;
    if (found.int8.tile == nullptr) found.int8 = portable.int8;
    return found;
  }();
  return kernels == ProductKernels::kPortable ? portable : fastest;
}

/// Whether panels lie together two by two (PairKernel).
bool pairs_panels(WeightFormat format) {
  return format == WeightFormat::kInt8 && kernels_of(ProductKernels::kFastest).int8.pair != nullptr;
}

}  // namespace

detail::ProductKernelSet detail::portable_kernels() {
  return {.f32 = {portable_f32}, .bf16 = {portable_bf16}, .int8 = {portable_int8}};
}

Tensor WeightArena::take(int64_t bytes) {
  constexpr int64_t kLarge = 4 << 20, kLine = 64;
  if (bytes >= kLarge) return at::zeros({bytes}, at::kByte);  // has huge pages of its own
  const std::lock_guard lock(mutex_);
  if (!piece_.defined() || used_ + bytes > piece_bytes_) {
    piece_ = at::zeros({std::max(piece_bytes_, bytes)}, at::kByte);
    used_ = 0;
  }
  const Tensor part = piece_.narrow(0, used_, bytes);
  used_ += round_up(bytes, kLine);
  return part;
}

PackedWeights::PackedWeights(const Tensor& weight_NK, WeightFormat format, WeightArena* arena) {
  TORCH_CHECK_VALUE(weight_NK.dim() == 2 && weight_NK.is_cpu() && weight_NK.scalar_type() == at::kFloat,
                    "[packed weights] expected an f32 matrix on the CPU, got ", weight_NK.toString(), " ",
                    weight_NK.sizes());
  *this = PackedWeights(weight_NK.const_data_ptr<float>(), weight_NK.size(0), weight_NK.size(1), weight_NK.stride(0),
                        weight_NK.stride(1), format, arena);
}

PackedWeights::PackedWeights(const float* data, int64_t columns, int64_t depth, int64_t column_stride,
                             int64_t depth_stride, WeightFormat format, WeightArena* arena)
    : columns_(columns), depth_(depth), format_(format) {
  TORCH_CHECK_VALUE(columns > 0 && depth > 0, "[packed weights] an empty matrix, ", columns, " x ", depth);
  const Shape shape = shape_of(format);
  const int64_t bytes = round_up(columns, 16) * shape.column(depth) * shape.bytes;
  data_ = arena != nullptr ? arena->take(bytes) : at::zeros({bytes}, at::kByte);
  if (format == WeightFormat::kInt8) scale_.resize(static_cast<size_t>(columns));
  auto* packed = data_.mutable_data_ptr<uint8_t>();
  packed_ = packed;
  num_paired_ = pairs_panels(format) ? columns / (2 * kPanelColumns) * 2 : 0;
  const auto put = [&](int64_t panel, int64_t column, auto* numbers, auto convert) {
    const int64_t width = step_columns(panel);
    const float* from = data + (panel * kPanelColumns + column) * column_stride;
    numbers += panel_begin(panel, shape.column(depth), shape.step);
    for (int64_t k = 0; k < depth; ++k) numbers[shape.place(column, k, width)] = convert(from[k * depth_stride]);
  };
  const auto put_heads = [&](int64_t panel, int64_t column, uint8_t* bytes) {  // of a column of int8
    const int64_t width = step_columns(panel);
    bytes += panel_begin(panel, shape.column(depth), shape.step);
    for (int64_t k = 0; k < depth; k += kDepthBlock) {
      int32_t sum = 0;
      for (int64_t i = k; i < std::min(depth, k + kDepthBlock); ++i) {
        sum += std::bit_cast<int8_t>(bytes[shape.place(column, i, width)]);
      }
      sum *= 32768;
      std::memcpy(bytes + shape.stretch(k) * width + column * 4, &sum, sizeof sum);
    }
  };
  at::parallel_for(0, columns, kPanelColumns, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const int64_t panel = n / kPanelColumns, column = n % kPanelColumns;
      if (format == WeightFormat::kF32) {
        put(panel, column, reinterpret_cast<float*>(packed), [](float x) { return x; });
      } else if (format == WeightFormat::kBf16) {
        put(panel, column, reinterpret_cast<uint16_t*>(packed), float_to_bf16);
      } else {
        float largest = 0;
        for (int64_t k = 0; k < depth; ++k) {
          const float magnitude = std::abs(data[n * column_stride + k * depth_stride]);
          largest = magnitude <= largest ? largest : magnitude;  // NaN stays
        }
        TORCH_CHECK_VALUE(std::isfinite(largest), "[packed weights] output ", n, " has weights that are not finite");
        scale_[static_cast<size_t>(n)] = largest / kLargest8;
        const float inverse = largest == 0 ? 0 : kLargest8 / largest;
        put(panel, column, reinterpret_cast<int8_t*>(packed),
            [inverse](float x) { return static_cast<int8_t>(std::nearbyint(x * inverse)); });
        put_heads(panel, column, packed);
      }
    }
  });
}

int64_t PackedWeights::step_columns(int64_t panel) const {
  return panel < num_paired_ ? 2 * kPanelColumns
                             : std::min(kPanelColumns, round_up(columns_ - panel * kPanelColumns, 16));
}

int64_t PackedWeights::panel_begin(int64_t panel, int64_t column_numbers, int64_t step) const {
  const int64_t within = panel < num_paired_ ? panel % 2 : 0;
  return (panel - within) * kPanelColumns * column_numbers + within * kPanelColumns * step;
}

int64_t PackedWeights::padded_depth() const { return shape_of(format_).padded(depth_); }

int64_t PackedWeights::bytes() const {
  return (data_.defined() ? data_.numel() : 0) + static_cast<int64_t>(scale_.size() * sizeof(float));
}

// One product, its rows converted.
struct PackedProduct {
  const PackedWeights& weight;
  const float* bias;
  float* out;
  int64_t out_stride;
  const float* row_scale = nullptr;

  template <class Row, class Weight>
  void run(const detail::Kernels<Row, Weight>& kernels, const Row* x, int64_t x_stride, int64_t rows) const {
    if (rows <= kernels.tile_rows && weight.columns_ <= kPanelColumns && weight.columns_ % 16 == 0 &&
        weight.depth_ <= kDepthBlock) {  // a head's, of which a step has many: one call
      constexpr Shape shape = shape_for<Weight>();
      return kernels.tile(x, x_stride, rows, panel_data<Weight>(0), weight.columns_, weight.columns_,
                          shape.padded(weight.depth_) / shape.step, sums_in(out, out_stride, 0, true, 0, 0));
    }
    const int64_t panels = (weight.columns_ + kPanelColumns - 1) / kPanelColumns;
    const int64_t at_once = rows == 1 && kernels.pair != nullptr ? 2 : 1, units = (panels + at_once - 1) / at_once;
    const int64_t unit_work = rows * weight.depth_ * kPanelColumns * at_once;
    const auto run_units = [&](int64_t begin, int64_t end) {
      for (int64_t panel = begin * at_once; panel < std::min(end * at_once, panels); ++panel) {
        if (at_once == 2 && panel % 2 == 0 && (panel + 2) * kPanelColumns <= weight.columns_) {
          two_panels(kernels.pair, x, x_stride, panel++);
          continue;
        }
        for (int64_t row = 0; row < rows; row += kRowChunk) {
          chunk(kernels, x + row * x_stride, x_stride, row, std::min(kRowChunk, rows - row), panel);
        }
      }
    };
    // Asking for the threads takes longer than a small product.
    if (units == 1 || units * unit_work <= kThreadWork) return run_units(0, units);
    at::parallel_for(0, units, std::max<int64_t>(1, kThreadWork / unit_work), run_units);
  }

  // The depth's stretches: f(k, steps, numbers of a panel before the stretch, whether it is the last).
  template <class Weight, class F>
  void over_depth(int64_t step_columns, F f) const {
    constexpr Shape shape = shape_for<Weight>();
    const int64_t padded = shape.padded(weight.depth_);
    for (int64_t k = 0; k < padded; k += kDepthBlock) {
      f(k, std::min(kDepthBlock, padded - k) / shape.step, shape.stretch(k) * step_columns, k + kDepthBlock >= padded);
    }
  }

  template <class Weight>
  const Weight* panel_data(int64_t panel) const {
    return reinterpret_cast<const Weight*>(weight.packed_) +
           weight.panel_begin(panel, shape_for<Weight>().column(weight.depth_), shape_for<Weight>().step);
  }

  template <class Row, class Weight>
  void chunk(const detail::Kernels<Row, Weight>& kernels, const Row* x, int64_t x_stride, int64_t first_row,
             int64_t rows, int64_t panel) const {
    const int64_t width = std::min(kPanelColumns, round_up(weight.columns_ - panel * kPanelColumns, 16));
    const int64_t step_columns = weight.step_columns(panel);
    const Weight* data = panel_data<Weight>(panel);
    const int64_t tiles = rows <= kernels.tile_rows ? 1 : (rows + kernels.tile_rows - 1) / kernels.tile_rows;
    // Of nearly equal size; without a division where there is one.
    const auto first_of = [&](int64_t tile) { return tiles == 1 ? rows * tile : rows * tile / tiles; };
    const auto into = [&](float* to, int64_t stride, bool is_finished) {
      over_depth<Weight>(step_columns, [&](int64_t k, int64_t steps, int64_t before, bool is_last) {
        for (int64_t tile = 0; tile < tiles; ++tile) {
          const int64_t r = first_of(tile), count = first_of(tile + 1) - r;
          kernels.tile(x + r * x_stride + k, x_stride, count, data + before, width, step_columns, steps,
                       sums_in(to + r * stride, stride, k, is_last && is_finished, first_row + r, panel));
        }
      });
    };
    if (goes_straight_to_out(panel)) {
      return into(out + first_row * out_stride + panel * kPanelColumns, out_stride, /*is_finished=*/true);
    }
    alignas(64) float sum[kRowChunk * kPanelColumns];
    into(sum, kPanelColumns, /*is_finished=*/false);
    for (int64_t r = 0; r < rows; ++r) finish(sum + r * kPanelColumns, first_row + r, panel);
  }

  template <class Row, class Weight>
  void two_panels(detail::PairKernel<Row, Weight> kernel, const Row* x, int64_t x_stride, int64_t panel) const {
    const Weight *first = panel_data<Weight>(panel), *second = panel_data<Weight>(panel + 1);
    const int64_t step_columns = weight.step_columns(panel);
    // Of panels that lie apart: the end of the first is the beginning of the second.
    const int64_t jump = step_columns == kPanelColumns ? static_cast<int64_t>((second - first) * sizeof(Weight)) : 0;
    const auto into = [&](float* to, bool is_finished) {
      over_depth<Weight>(step_columns, [&](int64_t k, int64_t steps, int64_t before, bool is_last) {
        kernel(x + k, x_stride, first + before, second + before, steps, is_last ? jump : 0,
               sums_in(to, 0, k, is_last && is_finished, 0, panel));
      });
    };
    if (goes_straight_to_out(panel)) return into(out + panel * kPanelColumns, /*is_finished=*/true);
    alignas(64) float sum[2 * kPanelColumns];
    into(sum, /*is_finished=*/false);
    finish(sum, 0, panel);
    finish(sum + kPanelColumns, 0, panel + 1);
  }

  const float* bias_of(int64_t panel) const { return bias == nullptr ? nullptr : bias + panel * kPanelColumns; }

  const float* scale_of(int64_t panel) const {
    return weight.scale_.empty() ? nullptr : weight.scale_.data() + panel * kPanelColumns;
  }

  // Where sums of the stretch from depth k on go, from `row` on; with scale and bias if they are finished then.
  detail::Sums sums_in(float* to, int64_t stride, int64_t k, bool is_finished, int64_t row, int64_t panel) const {
    detail::Sums sums{to, stride, /*adds=*/k > 0, /*bias=*/nullptr};
    if (!is_finished) return sums;
    sums.bias = bias_of(panel);
    sums.scale = scale_of(panel);
    if (sums.scale != nullptr) sums.row_scale = row_scale + row;
    return sums;
  }

  // Whether the panel needs no columns that the matrix has not.
  bool goes_straight_to_out(int64_t panel) const {
    return weight.columns_ % 16 == 0 || (panel + 1) * kPanelColumns <= weight.columns_;
  }

  void finish(const float* sum, int64_t row, int64_t panel) const {
    const int64_t column = panel * kPanelColumns, columns = std::min(kPanelColumns, weight.columns_ - column);
    const float* scale = scale_of(panel);
    finish_row(sum, columns, scale, scale == nullptr ? 1 : row_scale[row], bias_of(panel),
               out + row * out_stride + column);
  }

  // Rows as bf16, or as the bytes of 16-bit integers, the depth padded with what adds nothing.
  int64_t convert(const float* x, int64_t x_stride, int64_t rows, ProductScratch& scratch) {
    const int64_t depth = weight.depth_, padded = shape_of(weight.format_).padded(depth);
    const bool is_int8 = weight.format_ == WeightFormat::kInt8;
    if (static_cast<int64_t>(scratch.rows_.size()) < rows * padded)
      scratch.rows_.resize(static_cast<size_t>(rows * padded));
    if (static_cast<int64_t>(scratch.scale_.size()) < rows) scratch.scale_.resize(static_cast<size_t>(rows));
    for (int64_t r = 0; r < rows; ++r, x += x_stride) {
      int16_t* to = scratch.rows_.data() + r * padded;
      if (is_int8) {
        auto* high = reinterpret_cast<uint8_t*>(to);
        const float largest = largest_magnitude(x, depth);
        scratch.scale_[static_cast<size_t>(r)] = largest / kLargest16;
        to_bytes(x, depth, largest == 0 ? 0 : kLargest16 / largest, high, high + padded);
        std::fill(high + depth, high + padded, uint8_t{0});  // its weights are 0
        std::fill(high + padded + depth, high + 2 * padded, uint8_t{0});
      } else {
        to_bf16(x, depth, to);
        std::fill(to + depth, to + padded, int16_t{0});
      }
    }
    row_scale = scratch.scale_.data();
    return padded;
  }

  void run_converted(const detail::ProductKernelSet& kernels, const float* x, int64_t x_stride, int64_t rows,
                     ProductScratch& scratch) {
    const int64_t stride = convert(x, x_stride, rows, scratch);
    if (weight.format_ == WeightFormat::kInt8) {
      run(kernels.int8, reinterpret_cast<const uint8_t*>(scratch.rows_.data()), 2 * stride, rows);
    } else {
      run(kernels.bf16, reinterpret_cast<const uint16_t*>(scratch.rows_.data()), stride, rows);
    }
  }
};

void multiply(const float* x, int64_t x_stride, int64_t rows, const PackedWeights& weight, const float* bias,
              float* out, int64_t out_stride, ProductScratch& scratch, ProductKernels kernels) {
  PackedProduct product{weight, bias, out, out_stride};
  if (weight.format() == WeightFormat::kF32) {
    product.run(kernels_of(kernels).f32, x, x_stride, rows);
  } else {
    product.run_converted(kernels_of(kernels), x, x_stride, rows, scratch);
  }
}

void multiply(const uint16_t* x, int64_t x_stride, int64_t rows, const PackedWeights& weight, const float* bias,
              float* out, int64_t out_stride, ProductKernels kernels) {
  TORCH_CHECK_VALUE(weight.format() == WeightFormat::kBf16, "[packed weights] bf16 rows go with weights in bf16");
  PackedProduct{weight, bias, out, out_stride}.run(kernels_of(kernels).bf16, x, x_stride, rows);
}

}  // namespace dalle::layers

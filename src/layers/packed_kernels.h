// Private to packed_weights.cpp: the innermost loops of its products.
#pragma once

#include <cstdint>

namespace dalle::layers::detail {

inline constexpr int64_t kPanelColumns = 64;
inline constexpr int64_t kTileRows = 6;

/// sum[r, c] = (or, if adds, +=) the product of `rows` (1 .. 6) rows with a stretch of a panel of `width` (16, 32, 48 or 64) columns.
/// steps: of one number (f32) or of a pair of neighbours along the depth (bf16, int8). x_stride in elements of x.
/// sum_stride is kPanelColumns.
template <class Row, class Weight>
using TileKernel = void (*)(const Row* x, int64_t x_stride, int64_t rows, const Weight* panel, int64_t width,
                            int64_t steps, float* sum, bool adds);

struct TileKernels {
  TileKernel<float, float> f32;
  TileKernel<uint16_t, uint16_t> bf16;
  TileKernel<int16_t, int8_t> int8;
};

/// Null where this processor lacks the instructions.
TileKernels avx512_kernels();
TileKernels portable_kernels();

}  // namespace dalle::layers::detail

// Private to packed_weights.cpp: the innermost loops of its products.
//
// int8 is exact in 32-bit integers. A row's 16-bit number x is the unsigned x + 32768 = 256 high + low; a row is its high bytes,
// then, half its stride on, its low ones. A panel's stretch begins with 32768 times the sum of its weights, int32 for
// each column, which is taken off again. Sums may wrap on the way: the result, 32767 * 127 * 512 at most, fits.
#pragma once

#include <cstdint>

namespace dalle::layers::detail {

inline constexpr int64_t kPanelColumns = 64;

/// Where a kernel's results go.
struct Sums {
  float* at;
  int64_t stride;                // from row to row
  bool adds;                     // to what is there already
  const float* bias;             // of each column, added last; null: none
  const float* scale = nullptr;  // of each column, whose product with the row's multiplies sums before that; null: none
  const float* row_scale = nullptr;  // of each row
};

/// sums[r, c] = the product of `rows` (1 .. tile_rows) rows with a stretch of a panel of `width` (16, 32, 48 or 64) columns.
/// steps: of one number (f32), a pair (bf16) or four (int8) neighbours along the depth; of pairs and fours a multiple of 16.
/// step_columns: the columns whose numbers of a step lie together, the panel's or those of two panels.
/// x_stride in elements of x.
template <class Row, class Weight>
using TileKernel = void (*)(const Row* x, int64_t x_stride, int64_t rows, const Weight* panel, int64_t width,
                            int64_t step_columns, int64_t steps, const Sums& sums);

/// The same for one row and two panels of 64 columns, sums 0 .. 127: one panel's sums alone would wait for each other. Every
/// number is bitwise that of TileKernel. In int8 the two lie together, step by step: one stream of reads is faster than two, but
/// other formats' many rows, which read a panel over and over, lose more than a single one gains. `jump`: bytes between where a panel's stretch ends and where the weights lie that
/// are read after it, which are asked for ahead.
template <class Row, class Weight>
using PairKernel = void (*)(const Row* x, int64_t x_stride, const Weight* first, const Weight* second, int64_t steps,
                            int64_t jump, const Sums& sums);

template <class Row, class Weight>
struct Kernels {
  TileKernel<Row, Weight> tile = nullptr;
  int64_t tile_rows = 6;
  PairKernel<Row, Weight> pair = nullptr;  // null: none
};

struct ProductKernelSet {
  Kernels<float, float> f32;
  Kernels<uint16_t, uint16_t> bf16;
  Kernels<uint8_t, int8_t> int8;
};

/// Null where this processor lacks the instructions.
ProductKernelSet avx512_kernels();
/// `avx512` with AMX's tiles for bf16 and int8, where the processor and the system have them.
ProductKernelSet amx_kernels(const ProductKernelSet& avx512);
ProductKernelSet portable_kernels();

}  // namespace dalle::layers::detail

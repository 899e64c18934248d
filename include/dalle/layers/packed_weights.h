// Products of a few rows with matrices that stay the same for thousands of steps: what decoding token by token is made of.
// The matrix is packed once, in panels that the kernels read from beginning to end, so that one row costs a read of the
// weights and many rows run at the processor's speed. Kernels for AMX (bf16, int8) and AVX-512
// (f32, bf16 dot products, VNNI), else plain loops.
//
// Every output is summed in one fixed order over the depth, whatever the number of rows and threads: a row's result is
// bitwise the same alone and among others.
#pragma once

#include <cstdint>
#include <mutex>
#include <vector>

#include "dalle/core/tensor.h"

namespace dalle::layers {

enum class WeightFormat {
  kF32,   // f32 weights and rows
  kBf16,  // both rounded to bf16, sums in f32
  kInt8,  // weights symmetric with a scale for each output (its largest |weight| / 127); rows as 16-bit integers with a
          // scale each, sums exact in integers over stretches of 512, in f32 over these
};

/// Memory for many matrices that are read one after the other with each step: small ones side by side in pieces large enough
/// for huge pages, which make a row alone a few percent faster. Not for matrices that come and go: a piece lives as long as
/// anything in it.
class WeightArena {
 public:
  explicit WeightArena(int64_t piece_bytes = 16 << 20) : piece_bytes_(piece_bytes) {}
  /// uint8 [bytes], zeros, at a multiple of 64 bytes.
  Tensor take(int64_t bytes);

 private:
  std::mutex mutex_;  // matrices may be packed by several threads
  int64_t piece_bytes_;
  Tensor piece_;
  int64_t used_ = 0;
};

/// A matrix [columns, depth] (a linear layer's weight, outputs first) in a format's order. Columns are padded to a multiple
/// of 16, the depth of bf16 to a multiple of 32 and that of int8 to one of 64, what a tile of AMX takes.
class PackedWeights {
 public:
  PackedWeights() = default;
  /// Element (n, k) is data[n * column_stride + k * depth_stride]. Not finite numbers in int8: ValueError.
  PackedWeights(const float* data, int64_t columns, int64_t depth, int64_t column_stride, int64_t depth_stride,
                WeightFormat format, WeightArena* arena = nullptr);
  /// From an f32 CPU matrix [N, K].
  PackedWeights(const Tensor& weight_NK, WeightFormat format, WeightArena* arena = nullptr);

  int64_t columns() const { return columns_; }
  int64_t depth() const { return depth_; }
  /// Numbers that a row in the format's own form has.
  int64_t padded_depth() const;
  WeightFormat format() const { return format_; }
  /// What a product reads: packed numbers and scales, and of int8 the sums of each column's stretches.
  int64_t bytes() const;

 private:
  friend struct PackedProduct;
  int64_t step_columns(int64_t panel) const;
  /// Where a panel's numbers begin, given those of a column and of a step.
  int64_t panel_begin(int64_t panel, int64_t column_numbers, int64_t step) const;

  int64_t columns_ = 0, depth_ = 0;
  int64_t num_paired_ = 0;  // the first panels, of which every two lie as one of twice the width
  WeightFormat format_ = WeightFormat::kF32;
  // [panels][stretches of 512][sums, depth / step][columns of the panel, or of two][step]; the last panel may be narrower.
  Tensor data_;
  const uint8_t* packed_ = nullptr;  // of data_
  std::vector<float> scale_;         // int8: of each column
};

/// Rows in the form that the kernels read; kept by the caller so that steps allocate nothing.
class ProductScratch {
 private:
  friend struct PackedProduct;
  std::vector<int16_t> rows_;
  std::vector<float> scale_;
};

/// How to compute: kPortable takes the plain loops even where the processor has better.
enum class ProductKernels { kFastest, kPortable };

/// out[r, n] = sum over k of x[r, k] weight[n, k] (+ bias[n]), f32; strides from row to row. Runs on all threads, or on
/// this one within a parallel region. `bias` may be null.
void multiply(const float* x, int64_t x_stride, int64_t rows, const PackedWeights& weight, const float* bias,
              float* out, int64_t out_stride, ProductScratch& scratch,
              ProductKernels kernels = ProductKernels::kFastest);

/// The same with rows that are bf16 already, by their bits, for weights in bf16: `padded_depth()` numbers each, finite ones
/// behind the depth.
void multiply(const uint16_t* x, int64_t x_stride, int64_t rows, const PackedWeights& weight, const float* bias,
              float* out, int64_t out_stride, ProductKernels kernels = ProductKernels::kFastest);

}  // namespace dalle::layers

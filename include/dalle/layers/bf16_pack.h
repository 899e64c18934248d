// Operands of the bf16 matrix products (layers/bf16_product.h) in the order in which the processor's dot-product
// instructions read them: pairs of neighbours along the summed dimension side by side. AVX-512 only, as are the products.
#pragma once

#include <cstdint>

namespace dalle::layers::detail {

/// Columns are packed in groups of this many, one 64-byte register of pairs.
inline constexpr int64_t kPackColumns = 16;
/// Transposes take this many elements of the dimension that becomes the inner one.
inline constexpr int64_t kPackDepth = 32;

/// `rows` (a multiple of 2) rows of `columns` (of 16) -> pairs [rows / 2, out_columns, 2], of which `columns` are written.
/// f32 numbers are rounded to bf16.
void pack_rows(const uint16_t* in, int64_t in_stride, int64_t rows, int64_t columns, uint16_t* out,
               int64_t out_columns);
void pack_rows(const float* in, int64_t in_stride, int64_t rows, int64_t columns, uint16_t* out, int64_t out_columns);

/// One pair of rows of that; a null row counts as zeros.
void pack_edge(const uint16_t* even, const uint16_t* odd, int64_t columns, uint16_t* out);

/// What pack_rows() gives, from the transposed matrix, `columns` (of 16) rows of `rows` (of 32) elements.
void pack_transposed(const uint16_t* in, int64_t in_stride, int64_t rows, int64_t columns, uint16_t* out,
                     int64_t out_columns);
void pack_transposed(const float* in, int64_t in_stride, int64_t rows, int64_t columns, uint16_t* out,
                     int64_t out_columns);

/// out[c][r] = in[r][c] for `rows` (of 32) rows of `columns` (of 16) elements; strides in elements. sums[c], where not
/// null, becomes the sum of column c.
void transpose(const uint16_t* in, int64_t in_stride, int64_t rows, int64_t columns, uint16_t* out, int64_t out_stride,
               float* sums);

/// pack_rows() in groups of kPackColumns columns, [columns / 16, rows / 2, 16, 2], and the sums of the columns.
void pack_groups(const uint16_t* in, int64_t in_stride, int64_t rows, int64_t columns, uint16_t* out, float* sums);

/// Rows of f32 numbers x (columns a multiple of 16) -> rows of 3 x columns bf16 numbers: bf16(x), where low_third is the
/// number (0, 1, 2) of the third that gets bf16(x - bf16(x)) instead.
void split_rows(const float* in, int64_t in_stride, int64_t rows, int64_t columns, int64_t low_third, uint16_t* out);

}  // namespace dalle::layers::detail

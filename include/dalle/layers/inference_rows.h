// Loops over rows that inference needs besides products.
#pragma once

#include <cstdint>

namespace dalle::layers::detail {

/// out[r] = bf16(gain (x[r] - mean) / sqrt(variance + eps) + bias) of each of `rows` f32 rows, `dim` numbers each (a multiple of
/// 16); statistics in f32.
void layer_norm_rows(const float* x, int64_t rows, int64_t dim, const float* gain, const float* bias, float eps,
                     uint16_t* out);

/// One query's attention over `length` keys and values of one head, `head_dim` bf16 numbers each, `stride` numbers from one to the
/// next; softmax in f32, scale 1/sqrt(head_dim). `scores`: room for `length` numbers.
void attend_row(const uint16_t* query, const uint16_t* keys, const uint16_t* values, int64_t stride, int64_t length,
                int64_t head_dim, float* scores, uint16_t* out);

}  // namespace dalle::layers::detail

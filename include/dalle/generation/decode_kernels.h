// Of the fused decoder: the loops over one row between the matrix products. Sums have a fixed order, so a row's
// result depends on nothing but the row. bf16 numbers are given by their bits.
#pragma once

#include <cstdint>

namespace dalle::generation::detail {

/// out = (x - mean) / sqrt(variance + eps) * weight + bias over `size` numbers; out may be x.
void layer_norm(const float* x, int64_t size, const float* weight, const float* bias, float eps, float* out);
void add(const float* x, int64_t size, float* sum);
void multiply_by(float factor, int64_t size, float* x);
/// x = gelu(x): absolute error below 3e-7 max(1, |x|), and 1e-6 where x < 0.
void gelu(int64_t size, float* x);
void quick_gelu(int64_t size, float* x);

/// out = x, rounded to nearest even.
void store(const float* x, int64_t size, uint16_t* out);

/// scores = exp(scores - their maximum); returns the sum.
float exponentials(int64_t count, float* scores);

}  // namespace dalle::generation::detail

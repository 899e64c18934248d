// Loops over the rows of attention's blocks, in f32 or bf16 (as its bits), vectorised for any processor.
#pragma once

#include <cstdint>

#include "dalle/core/pair_words.h"

namespace dalle::layers::detail {

using Bf16 = uint16_t;

/// Rows of scores are a multiple of this many numbers long.
inline constexpr int64_t kAttentionLanes = 16;

/// scores[r][c] += bias[r][c] for `rows` rows of `width` numbers.
void add_bias(float* scores, int64_t stride, const float* bias, int64_t rows, int64_t width);

/// out = exp(scale row - shift), where shift is scale times the row's maximum; and the sum.
struct ExponentialRow {
  float shift, sum;
};
ExponentialRow exponentials_of(const float* row, int64_t width, float scale, float* out);
ExponentialRow exponentials_of(const float* row, int64_t width, float scale, Bf16* out);

/// out = shift + ln(sum) of `size` rows; NaN where a sum is not finite.
void log_normalizers_of(const float* shifts, const float* sums, int64_t size, float* out);

/// weights = exp(scale scores - log normalizer), and grad_scores = scale weights (grad_weights - delta).
void softmax_gradient_of(const float* scores, const float* grad_weights, int64_t width, float scale,
                         float log_normalizer, float delta, float* weights, float* grad_scores);
void softmax_gradient_of(const float* scores, const float* grad_weights, int64_t width, float scale,
                         float log_normalizer, float delta, Bf16* weights, Bf16* grad_scores);

void multiply_row(const float* factors, int64_t size, float* row);
void multiply_row(const float* factors, int64_t size, Bf16* row);

/// What dropout multiplies the weights of `keys` by: 0 where the pair's word is below `threshold`, else `kept`.
void dropout_row(PairRow row, const uint32_t* keys, int64_t size, uint32_t threshold, float kept, float* factors);

float dot_of(const float* a, const float* b, int64_t size);
float dot_of(const Bf16* a, const Bf16* b, int64_t size);

/// out = factor in.
void convert_row(const float* in, int64_t size, float factor, float* out);
void convert_row(const float* in, int64_t size, float factor, Bf16* out);
void convert_row(const Bf16* in, int64_t size, float factor, float* out);
void convert_row(const Bf16* in, int64_t size, float factor, Bf16* out);

}  // namespace dalle::layers::detail

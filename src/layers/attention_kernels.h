// Inner loops of block_sparse_attention() on bf16 for processors with AVX-512 and its bf16 dot products but no matrix unit:
// tiles so small that calls into a library cost as much as their work. To be called only where has_bf16_products().
//
// A pair is two bf16 neighbours along the summed dimension, side by side (bf16_pack.h).
#pragma once

#include <cstdint>

#include "attention_rows.h"

namespace dalle::layers::detail {

/// A left-hand side: the pair k of row m lies at data + 2 (m row + k pair).
struct PairOperand {
  const uint16_t* data;
  int64_t row, pair;  // strides, in pairs
};

/// c [m, n] = a b, or c += a b: sums over `pairs` pairs, in f32. m a multiple of 8, n of 16; b in pairs [pairs, ldb, 2];
/// ldc numbers from a row of c to the next.
void pair_product(int64_t m, int64_t n, int64_t pairs, const PairOperand& a, const uint16_t* b, int64_t ldb, float* c,
                  int64_t ldc, bool adds);

/// out = exp(scale row - shift) as bf16, where shift is scale times the row's maximum; exactly 0 where that is below 2^-126.
/// The sum is that before rounding. `width`: a multiple of 16.
ExponentialRow exponentials_bf16(const float* row, int64_t width, float scale, uint16_t* out);

/// out = factor in as bf16. `size`: a multiple of 16.
void convert_row_bf16(const float* in, int64_t size, float factor, uint16_t* out);

/// Two queries of a block on the way back through the softmax: w = exp(scale scores - log normalizer), dS = scale w
/// (factor dW - delta). A log normalizer of infinity makes a query that is none: all zeros.
struct SoftmaxGradientRows {
  const float* scores[2];
  const float* grad_weights[2];
  const float* factors[2];  // of dropout; both null where there is none
  float log_normalizers[2];
  float deltas[2];
  uint16_t* grad_scores[2];      // dS
  uint16_t* turned_weights;      // factor w, pairs of the two queries [width, 2]
  uint16_t* turned_grad_scores;  // dS, the same
};
void softmax_gradient_rows(const SoftmaxGradientRows& rows, int64_t width, float scale);

/// sum(a b) over `size` (a multiple of 32) numbers.
float dot_bf16(const uint16_t* a, const uint16_t* b, int64_t size);

}  // namespace dalle::layers::detail

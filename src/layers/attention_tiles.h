// What a head of block_sparse_attention() is computed with: for f32 and bf16 oneDNN's small-tile products through ATen's
// brgemm (AMX, AVX-512), and for bf16 on AVX-512 alone own loops (attention_kernels.h). Each has
//   product()             c (+)= a b for packed b, and pack(), pack_columns() to pack it from rows or from columns
//   exponentials()        of a row of scores
//   store()               a finished row, in the type of what it belongs to
//   softmax_gradients()   of a block, whose weights and dS come out turned, as the left-hand side of what is summed over queries
//   turned_product()      that product, for a stretch of keys
#pragma once

#include <ATen/native/CPUBlas.h>

#include <algorithm>
#include <limits>
#include <type_traits>

#include "attention_kernels.h"
#include "attention_rows.h"
#include "dalle/layers/bf16_pack.h"
#include "dalle/layers/block_sparse_plan.h"

namespace dalle::layers::detail {

/// A block on the way back through the softmax; rows of `width` numbers, kQueries of them, of which num_queries count.
template <class T>
struct BlockGradient {
  int64_t num_queries, width;
  float scale;
  const float* scores;
  float* grad_weights;           // dW, overwritten
  const float* log_normalizers;  // num_queries
  const float* deltas;           // num_queries
  const float* factors;          // of dropout, or null
  T* weights;                    // scratch
  T* grad_scores;                // dS
  T* turned_weights;
  T* turned_grad_scores;
};

template <class Element>
struct BrgemmTiles {
  using T = Element;
  static constexpr int64_t kQueries = BlockSparsePlan::kQueries;
  static constexpr bool kIsBf16 = std::is_same_v<T, Bf16>;
  static constexpr int64_t kPair = kIsBf16 ? 2 : 1;    // a step of one column in packed b
  static constexpr int64_t kDepth = kIsBf16 ? 32 : 1;  // multiple of the head's size

  static void product(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb, float* c,
                      int64_t ldc, bool adds) {
    if constexpr (kIsBf16) {
      at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, adds, reinterpret_cast<const at::BFloat16*>(a),
                                  reinterpret_cast<const at::BFloat16*>(b), c);
    } else {
      at::native::cpublas::brgemm(m, n, k, lda, ldb, ldc, adds, a, b, c, /*is_vnni=*/false);
    }
  }

  static void pack_columns(const T* rows, int64_t stride, int64_t count, int64_t size, T* out) {
    if constexpr (kIsBf16) {
      pack_transposed(rows, stride, size, count, out, count);
    } else {
      for (int64_t r = 0; r < count; ++r) {
        for (int64_t i = 0; i < size; ++i) out[i * count + r] = rows[r * stride + i];
      }
    }
  }

  static void pack(const T* rows, int64_t stride, int64_t count, int64_t size, T* out) {
    if constexpr (kIsBf16) {
      pack_rows(rows, stride, count, size, out, size);
    } else {
      for (int64_t r = 0; r < count; ++r) std::copy_n(rows + r * stride, size, out + r * size);
    }
  }

  static ExponentialRow exponentials(const float* row, int64_t width, float scale, T* out) {
    return exponentials_of(row, width, scale, out);
  }

  template <class Out>
  static void store(const float* row, int64_t size, float factor, Out* out) {
    convert_row(row, size, factor, out);
  }

  static float dot(const T* a, const T* b, int64_t size) { return dot_of(a, b, size); }

  static void softmax_gradients(const BlockGradient<T>& block) {
    const int64_t width = block.width;
    for (int64_t r = 0; r < block.num_queries; ++r) {
      const int64_t at = r * width;
      if (block.factors != nullptr) multiply_row(block.factors + at, width, block.grad_weights + at);
      softmax_gradient_of(block.scores + at, block.grad_weights + at, width, block.scale, block.log_normalizers[r],
                          block.deltas[r], block.weights + at, block.grad_scores + at);
      if (block.factors != nullptr) multiply_row(block.factors + at, width, block.weights + at);
    }
    const int64_t rest = (kQueries - block.num_queries) * width, end = block.num_queries * width;
    std::fill_n(block.weights + end, rest, T{});
    std::fill_n(block.grad_scores + end, rest, T{});
    turn(block.weights, width, block.turned_weights);
    turn(block.grad_scores, width, block.turned_grad_scores);
  }

  /// sums[key] (+= over the block's queries) turned[key] rows, keys from `column` of the block's `width` on.
  static void turned_product(int64_t keys, int64_t size, const T* turned, int64_t column, int64_t /*width*/,
                             const T* packed_rows, float* sums) {
    product(keys, size, kQueries, turned + column * kQueries, kQueries, packed_rows, size, sums, size, true);
  }

  static void release() {
    if constexpr (kIsBf16) at::native::cpublas::brgemm_release();
  }

 private:
  static void turn(const T* block, int64_t width, T* out) {
    if constexpr (kIsBf16) {
      transpose(block, width, kQueries, width, out, kQueries, nullptr);
    } else {
      pack_columns(block, width, kQueries, width, out);
    }
  }
};

/// bf16 on AVX-512.
struct PairTiles : BrgemmTiles<Bf16> {
  static void product(int64_t m, int64_t n, int64_t k, const T* a, int64_t lda, const T* b, int64_t ldb, float* c,
                      int64_t ldc, bool adds) {
    pair_product(m, n, k / 2, {.data = a, .row = lda / 2, .pair = 1}, b, ldb, c, ldc, adds);
  }

  static ExponentialRow exponentials(const float* row, int64_t width, float scale, T* out) {
    return exponentials_bf16(row, width, scale, out);
  }

  template <class Out>
  static void store(const float* row, int64_t size, float factor, Out* out) {
    if constexpr (std::is_same_v<Out, Bf16>) {
      if (size % 16 == 0) return convert_row_bf16(row, size, factor, out);
    }
    convert_row(row, size, factor, out);
  }

  static float dot(const T* a, const T* b, int64_t size) { return dot_bf16(a, b, size); }

  static void softmax_gradients(const BlockGradient<T>& block) {
    constexpr float kNone = std::numeric_limits<float>::infinity();
    for (int64_t r = 0; r < kQueries; r += 2) {
      SoftmaxGradientRows rows{};
      for (int64_t i = 0; i < 2; ++i) {
        const int64_t at = (r + i) * block.width;
        const bool counts = r + i < block.num_queries;
        rows.scores[i] = block.scores + at;
        rows.grad_weights[i] = block.grad_weights + at;
        rows.factors[i] = block.factors == nullptr ? nullptr : block.factors + at;
        rows.log_normalizers[i] = counts ? block.log_normalizers[r + i] : kNone;
        rows.deltas[i] = counts ? block.deltas[r + i] : 0;
        rows.grad_scores[i] = block.grad_scores + at;
      }
      rows.turned_weights = block.turned_weights + r * block.width;
      rows.turned_grad_scores = block.turned_grad_scores + r * block.width;
      softmax_gradient_rows(rows, block.width, block.scale);
    }
  }

  static void turned_product(int64_t keys, int64_t size, const T* turned, int64_t column, int64_t width,
                             const T* packed_rows, float* sums) {
    pair_product(keys, size, kQueries / 2, {.data = turned + 2 * column, .row = 1, .pair = width}, packed_rows, size,
                 sums, size, true);
  }

  static void release() {}
};

}  // namespace dalle::layers::detail

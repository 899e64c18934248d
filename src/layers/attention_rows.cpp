#include "attention_rows.h"

#include <algorithm>
#include <type_traits>

#include "dalle/core/bf16.h"
#include "dalle/core/vector_math.h"
#include "dalle/core/vectorise.h"

namespace dalle::layers::detail {
namespace {

constexpr int64_t kLanes = kAttentionLanes;  // as in relaxation_cpu.cpp: sums of a fixed order that vectorise

DALLE_INLINED void put(float& out, float x) { out = x; }
DALLE_INLINED void put(Bf16& out, float x) { out = float_to_bf16(x); }
DALLE_INLINED float get(float x) { return x; }
DALLE_INLINED float get(Bf16 x) { return bf16_to_float(x); }

DALLE_INLINED float row_maximum(const float* row, int64_t width) {
  float maximum[kLanes];
  std::copy_n(row, kLanes, maximum);
  for (int64_t c = kLanes; c < width; c += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      maximum[lane] = row[c + lane] > maximum[lane] ? row[c + lane] : maximum[lane];
    }
  }
  return *std::max_element(maximum, maximum + kLanes);
}

template <class T>
DALLE_INLINED ExponentialRow exponentials(const float* row, int64_t width, float scale, T* out) {
  const float shift = row_maximum(row, width) * scale;
  float sums[kLanes] = {};
  for (int64_t c = 0; c < width; c += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const float e = vector_exp(row[c + lane] * scale - shift);
      sums[lane] += e;
      put(out[c + lane], e);
    }
  }
  float sum = 0;
  for (const float part : sums) sum += part;
  return {shift, sum};
}

template <class T>
DALLE_INLINED void softmax_gradient(const float* scores, const float* grad_weights, int64_t width, float scale,
                                    float log_normalizer, float delta, T* weights, T* grad_scores) {
  for (int64_t c = 0; c < width; ++c) {
    const float w = vector_exp(scores[c] * scale - log_normalizer);
    put(weights[c], w);
    put(grad_scores[c], scale * w * (grad_weights[c] - delta));
  }
}

template <class T>
DALLE_INLINED void multiply(const float* factors, int64_t size, T* row) {
  for (int64_t i = 0; i < size; ++i) put(row[i], get(row[i]) * factors[i]);
}

template <class A, class B>
DALLE_INLINED float dot(const A* a, const B* b, int64_t size) {
  float sum = 0;
  for (int64_t i = 0; i < size; ++i) sum += get(a[i]) * get(b[i]);
  return sum;
}

template <class In, class Out>
DALLE_INLINED void convert(const In* in, int64_t size, float factor, Out* out) {
  if constexpr (std::is_same_v<In, Out>) {
    if (factor == 1) {
      std::copy_n(in, size, out);
      return;
    }
  }
  for (int64_t i = 0; i < size; ++i) put(out[i], get(in[i]) * factor);
}

}  // namespace

DALLE_VECTORISED void add_bias(float* scores, int64_t stride, const float* bias, int64_t rows, int64_t width) {
  for (int64_t r = 0; r < rows; ++r, scores += stride, bias += width) {
    for (int64_t c = 0; c < width; ++c) scores[c] += bias[c];
  }
}

DALLE_VECTORISED void log_normalizers_of(const float* shifts, const float* sums, int64_t size, float* out) {
  // What is not finite less itself is NaN, which the logarithm of bits would not be.
  for (int64_t i = 0; i < size; ++i) out[i] = shifts[i] + vector_log(sums[i]) + (sums[i] - sums[i]);
}

// clang-format off
DALLE_VECTORISED ExponentialRow exponentials_of(const float* row, int64_t width, float scale, float* out) { return exponentials(row, width, scale, out); }
DALLE_VECTORISED ExponentialRow exponentials_of(const float* row, int64_t width, float scale, Bf16* out) { return exponentials(row, width, scale, out); }
DALLE_VECTORISED void softmax_gradient_of(const float* s, const float* g, int64_t width, float scale, float normalizer, float delta, float* weights, float* out) { softmax_gradient(s, g, width, scale, normalizer, delta, weights, out); }
DALLE_VECTORISED void softmax_gradient_of(const float* s, const float* g, int64_t width, float scale, float normalizer, float delta, Bf16* weights, Bf16* out) { softmax_gradient(s, g, width, scale, normalizer, delta, weights, out); }
DALLE_VECTORISED void multiply_row(const float* factors, int64_t size, float* row) { multiply(factors, size, row); }
DALLE_VECTORISED void multiply_row(const float* factors, int64_t size, Bf16* row) { multiply(factors, size, row); }
DALLE_VECTORISED void dropout_row(PairRow row, const uint32_t* keys, int64_t size, uint32_t threshold, float kept, float* factors) {
  for (int64_t i = 0; i < size; ++i) factors[i] = pair_word(row, keys[i]) < threshold ? 0.0f : kept;
}
DALLE_VECTORISED float dot_of(const float* a, const float* b, int64_t size) { return dot(a, b, size); }
DALLE_VECTORISED float dot_of(const Bf16* a, const Bf16* b, int64_t size) { return dot(a, b, size); }
DALLE_VECTORISED void convert_row(const float* in, int64_t size, float factor, float* out) { convert(in, size, factor, out); }
DALLE_VECTORISED void convert_row(const float* in, int64_t size, float factor, Bf16* out) { convert(in, size, factor, out); }
DALLE_VECTORISED void convert_row(const Bf16* in, int64_t size, float factor, float* out) { convert(in, size, factor, out); }
DALLE_VECTORISED void convert_row(const Bf16* in, int64_t size, float factor, Bf16* out) { convert(in, size, factor, out); }
// clang-format on

}  // namespace dalle::layers::detail

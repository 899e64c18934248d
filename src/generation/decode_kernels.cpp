#include "dalle/generation/decode_kernels.h"

#include <algorithm>
#include <cmath>

#include "dalle/core/bf16.h"
#include "dalle/core/vector_math.h"
#include "dalle/core/vectorise.h"
#include "row_kernels_avx512.h"

namespace dalle::generation::detail {
namespace {

constexpr int64_t kLanes = 16;

DALLE_INLINED float sum_of(const float (&lanes)[kLanes]) {
  float four[4];
  for (int i = 0; i < 4; ++i) four[i] = (lanes[i] + lanes[i + 4]) + (lanes[i + 8] + lanes[i + 12]);
  return (four[0] + four[1]) + (four[2] + four[3]);
}

// The sum of term(i) for i < size.
template <class Term>
DALLE_INLINED float sum_over(int64_t size, Term term) {
  float lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += term(i + lane);
  }
  for (int64_t lane = 0; i < size; ++i, ++lane) lanes[lane] += term(i);
  return sum_of(lanes);
}

DALLE_VECTORISED void portable_gelu(int64_t size, float* x) {
  for (int64_t i = 0; i < size; ++i) x[i] = vector_gelu(x[i]);
}

}  // namespace

DALLE_VECTORISED void layer_norm(const float* x, int64_t size, const float* weight, const float* bias, float eps,
                                 float* out) {
  const auto count = static_cast<float>(size);
  const float mean = sum_over(size, [&](int64_t i) { return x[i]; }) / count;
  const float variance = sum_over(size, [&](int64_t i) { return (x[i] - mean) * (x[i] - mean); }) / count;
  const float scale = 1.0f / std::sqrt(variance + eps);
  for (int64_t i = 0; i < size; ++i) out[i] = (x[i] - mean) * scale * weight[i] + bias[i];
}

DALLE_VECTORISED void add(const float* x, int64_t size, float* sum) {
  for (int64_t i = 0; i < size; ++i) sum[i] += x[i];
}

DALLE_VECTORISED void multiply_by(float factor, int64_t size, float* x) {
  for (int64_t i = 0; i < size; ++i) x[i] *= factor;
}

void gelu(int64_t size, float* x) { (has_row_avx512() ? avx512_gelu : portable_gelu)(size, x); }

DALLE_VECTORISED void quick_gelu(int64_t size, float* x) {
  for (int64_t i = 0; i < size; ++i) x[i] = vector_quick_gelu(x[i]);
}

DALLE_VECTORISED void store(const float* x, int64_t size, uint16_t* out) {
  for (int64_t i = 0; i < size; ++i) out[i] = float_to_bf16(x[i]);
}

DALLE_VECTORISED float exponentials(int64_t count, float* scores) {
  float largest[kLanes];
  std::fill_n(largest, kLanes, scores[0]);
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      largest[lane] = scores[i + lane] > largest[lane] ? scores[i + lane] : largest[lane];
    }
  }
  for (int64_t lane = 0; i < count; ++i, ++lane) largest[lane] = std::max(largest[lane], scores[i]);
  const float shift = *std::max_element(largest, largest + kLanes);
  for (i = 0; i < count; ++i) scores[i] = vector_exp(scores[i] - shift);
  return sum_over(count, [&](int64_t at) { return scores[at]; });
}

}  // namespace dalle::generation::detail

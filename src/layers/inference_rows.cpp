#include "dalle/layers/inference_rows.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cmath>

#include "dalle/core/bf16.h"
#include "dalle/core/vector_math.h"
#include "dalle/core/vectorise.h"
#include "dalle/layers/packed_transformer.h"

namespace dalle::layers {
namespace detail {
namespace {

constexpr int64_t kLanes = 16;  // sums of a fixed order that vectorise

DALLE_VECTORISED void normalise_row(const float* x, int64_t dim, const float* gain, const float* bias, float eps,
                                    uint16_t* out) {
  float sums[kLanes] = {}, squares[kLanes] = {};
  for (int64_t i = 0; i < dim; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) sums[lane] += x[i + lane];
  }
  float mean = 0, variance = 0;
  for (const float part : sums) mean += part;
  mean /= static_cast<float>(dim);
  for (int64_t i = 0; i < dim; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      const float centred = x[i + lane] - mean;
      squares[lane] += centred * centred;
    }
  }
  for (const float part : squares) variance += part;
  const float scale = 1 / std::sqrt(variance / static_cast<float>(dim) + eps);
  for (int64_t i = 0; i < dim; ++i) out[i] = float_to_bf16((x[i] - mean) * scale * gain[i] + bias[i]);
}

constexpr int64_t kMaxHeadDim = 256;

}  // namespace

DALLE_VECTORISED void attend_row(const uint16_t* query, const uint16_t* keys, const uint16_t* values, int64_t stride,
                                 int64_t length, int64_t head_dim, float* scores, uint16_t* out) {
  TORCH_CHECK_VALUE(head_dim <= kMaxHeadDim, "[attention] expected heads of at most ", kMaxHeadDim, ", got ", head_dim);
  float q[kMaxHeadDim], sum[kMaxHeadDim] = {};
  const float scale = 1 / std::sqrt(static_cast<float>(head_dim));
  for (int64_t i = 0; i < head_dim; ++i) q[i] = bf16_to_float(query[i]) * scale;
  float largest = -INFINITY, total = 0;
  for (int64_t j = 0; j < length; ++j, keys += stride) {
    float lanes[kLanes] = {};
    int64_t i = 0;
    for (; i + kLanes <= head_dim; i += kLanes) {
      for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] += q[i + lane] * bf16_to_float(keys[i + lane]);
    }
    for (; i < head_dim; ++i) lanes[0] += q[i] * bf16_to_float(keys[i]);
    float score = 0;
    for (const float part : lanes) score += part;
    scores[j] = score;
    largest = score > largest ? score : largest;
  }
  for (int64_t j = 0; j < length; ++j, values += stride) {
    const float weight = vector_exp(scores[j] - largest);
    total += weight;
    for (int64_t i = 0; i < head_dim; ++i) sum[i] += weight * bf16_to_float(values[i]);
  }
  for (int64_t i = 0; i < head_dim; ++i) out[i] = float_to_bf16(sum[i] / total);
}

void layer_norm_rows(const float* x, int64_t rows, int64_t dim, const float* gain, const float* bias, float eps,
                     uint16_t* out) {
  at::parallel_for(0, rows, 64, [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) normalise_row(x + r * dim, dim, gain, bias, eps, out + r * dim);
  });
}

}  // namespace detail

Tensor layer_norm_bf16(const LayerNorm& norm, const Tensor& x_ND) {
  TORCH_CHECK_VALUE(x_ND.dim() == 2 && x_ND.is_cpu() && x_ND.scalar_type() == at::kFloat && x_ND.is_contiguous() &&
                        x_ND.size(1) == norm.dim && norm.dim % 16 == 0,
                    "[layer norm] expected contiguous f32 rows [N, ", norm.dim, "], a multiple of 16, got ",
                    x_ND.sizes());
  const Tensor out = at::empty_like(x_ND, at::kBFloat16);
  detail::layer_norm_rows(x_ND.const_data_ptr<float>(), x_ND.size(0), norm.dim,
                          norm.weight.tensor.const_data_ptr<float>(), norm.bias.tensor.const_data_ptr<float>(),
                          static_cast<float>(norm.eps), static_cast<uint16_t*>(out.mutable_data_ptr()));
  return out;
}

}  // namespace dalle::layers

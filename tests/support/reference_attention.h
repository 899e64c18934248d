// The slow, obvious attention: loops over batch, head and query, a softmax over exactly the visible keys, in f64.
#pragma once

#include <ATen/ATen.h>

#include <cmath>
#include <vector>

#include "dalle/core/tensor.h"

namespace dalle::testing {

/// q, k, v [B, H, L, K] of any type; visible_LL bool. Returns f64 [B, H, L, K].
inline Tensor reference_attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& visible_LL) {
  const Tensor q64 = q.detach().to(at::kDouble).contiguous(), k64 = k.detach().to(at::kDouble).contiguous(),
               v64 = v.detach().to(at::kDouble).contiguous(), mask = visible_LL.contiguous();
  const int64_t queries = q.size(2), keys = k.size(2), width = q.size(3);
  Tensor out = at::zeros_like(q64);
  const bool* may_see = mask.const_data_ptr<bool>();
  for (int64_t head = 0; head < q.size(0) * q.size(1); ++head) {
    const double* q_row = q64.const_data_ptr<double>() + head * queries * width;
    const double* k_head = k64.const_data_ptr<double>() + head * keys * width;
    const double* v_head = v64.const_data_ptr<double>() + head * keys * width;
    double* out_row = out.mutable_data_ptr<double>() + head * queries * width;
    for (int64_t i = 0; i < queries; ++i, q_row += width, out_row += width) {
      std::vector<double> weight(keys, 0.0);
      double total = 0;
      for (int64_t j = 0; j < keys; ++j) {
        if (!may_see[i * keys + j]) continue;
        double score = 0;
        for (int64_t d = 0; d < width; ++d) score += q_row[d] * k_head[j * width + d];
        total += weight[j] = std::exp(score / std::sqrt(static_cast<double>(width)));
      }
      for (int64_t j = 0; j < keys; ++j) {
        for (int64_t d = 0; d < width; ++d) out_row[d] += weight[j] / total * v_head[j * width + d];
      }
    }
  }
  return out;
}

}  // namespace dalle::testing

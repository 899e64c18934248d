#include "dalle/layers/layer_norm_function.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>

#include "dalle/core/bf16.h"
#include "dalle/core/vectorise.h"

namespace dalle::layers {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using Bf16 = uint16_t;

constexpr int64_t kNormLanes = 16;    // sums of a fixed order that vectorise
constexpr int64_t kNormStretch = 64;  // rows that are summed up for the gradients of weight and bias at once

struct RowStatistics {
  float mean, inverse_deviation;
};

// sum over i of value(i), in lanes.
template <class Value>
DALLE_INLINED float lane_sum(int64_t size, const Value& value) {
  float lanes[kNormLanes] = {};
  const int64_t whole = size / kNormLanes * kNormLanes;
  for (int64_t i = 0; i < whole; i += kNormLanes) {
    for (int64_t lane = 0; lane < kNormLanes; ++lane) lanes[lane] += value(i + lane);
  }
  float sum = 0;
  for (const float lane : lanes) sum += lane;
  for (int64_t i = whole; i < size; ++i) sum += value(i);
  return sum;
}

DALLE_VECTORISED RowStatistics normalize_row(const float* x, const float* weight, const float* bias, int64_t size,
                                             float eps, Bf16* out) {
  const auto count = static_cast<float>(size);
  const float mean = lane_sum(size, [x](int64_t i) { return x[i]; }) / count;
  const float variance = lane_sum(size, [x, mean](int64_t i) { return (x[i] - mean) * (x[i] - mean); }) / count;
  const float inverse = 1.0f / std::sqrt(variance + eps);
  for (int64_t i = 0; i < size; ++i) out[i] = float_to_bf16((x[i] - mean) * inverse * weight[i] + bias[i]);
  return {mean, inverse};
}

// The row's part of all gradients. add(i, g) puts the gradient of x[i] where it belongs.
template <class Add>
DALLE_INLINED void row_gradients(const Bf16* grad, const float* x, const float* weight, int64_t size, RowStatistics row,
                                 float* grad_weight, float* grad_bias, const Add& add) {
  const auto count = static_cast<float>(size);
  const auto [mean, inverse] = row;
  const float scaled_sum =
      lane_sum(size, [grad, weight](int64_t i) { return bf16_to_float(grad[i]) * weight[i]; }) / count;
  const float projection =
      lane_sum(size, [grad, weight, x,
                      mean = mean](int64_t i) { return bf16_to_float(grad[i]) * weight[i] * (x[i] - mean); }) *
      inverse / count;
  for (int64_t i = 0; i < size; ++i) {
    const float g = bf16_to_float(grad[i]), normal = (x[i] - mean) * inverse;
    add(i, inverse * (g * weight[i] - scaled_sum - normal * projection));
  }
  for (int64_t i = 0; i < size; ++i) {  // apart: GCC vectorises no loop over so many arrays that might overlap
    const float g = bf16_to_float(grad[i]);
    grad_weight[i] += g * ((x[i] - mean) * inverse);
    grad_bias[i] += g;
  }
}

DALLE_VECTORISED void normalize_row_backward(const Bf16* grad, const float* x, const float* weight, int64_t size,
                                             RowStatistics row, float* grad_x, float* grad_weight, float* grad_bias) {
  row_gradients(grad, x, weight, size, row, grad_weight, grad_bias, [=](int64_t i, float g) { grad_x[i] = g; });
}

// Beside the gradient of another path.
DALLE_VECTORISED void normalize_row_backward(const Bf16* grad, const float* x, const float* weight, int64_t size,
                                             RowStatistics row, const float* other, float* grad_x, float* grad_weight,
                                             float* grad_bias) {
  row_gradients(grad, x, weight, size, row, grad_weight, grad_bias,
                [=](int64_t i, float g) { grad_x[i] = other[i] + g; });
}

struct LayerNormFunction : torch::autograd::Function<LayerNormFunction> {
  static variable_list forward(AutogradContext* context, const Tensor& x, const Tensor& weight, const Tensor& bias,
                               double eps, bool beside_input) {
    const int64_t rows = x.size(0), size = x.size(1);
    const Tensor out = at::empty(x.sizes(), x.options().dtype(at::kBFloat16)),
                 statistics = at::empty({rows, 2}, x.options());
    const float *in = x.const_data_ptr<float>(), *w = weight.const_data_ptr<float>(), *b = bias.const_data_ptr<float>();
    auto* to = static_cast<Bf16*>(out.mutable_data_ptr());
    auto* row_statistics = reinterpret_cast<RowStatistics*>(statistics.mutable_data_ptr<float>());
    at::parallel_for(0, rows, kNormStretch, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        row_statistics[r] = normalize_row(in + r * size, w, b, size, static_cast<float>(eps), to + r * size);
      }
    });
    context->save_for_backward({x, weight, statistics});
    return beside_input ? variable_list{out, x} : variable_list{out};
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const Tensor &x = saved[0], &weight = saved[1], grad = grads[0].contiguous();
    const int64_t rows = x.size(0), size = x.size(1), stretches = (rows + kNormStretch - 1) / kNormStretch;
    const Tensor grad_x = at::empty_like(x), sums = at::zeros({stretches, 2, size}, x.options());
    const auto* statistics = reinterpret_cast<const RowStatistics*>(saved[2].const_data_ptr<float>());
    const auto* from = static_cast<const Bf16*>(grad.const_data_ptr());
    const float* in = x.const_data_ptr<float>();
    const Tensor other = grads.size() > 1 ? grads[1].contiguous() : Tensor();
    at::parallel_for(0, stretches, 1, [&](int64_t begin, int64_t end) {
      for (int64_t r = begin * kNormStretch; r < std::min(rows, end * kNormStretch); ++r) {
        float* sum = sums.mutable_data_ptr<float>() + r / kNormStretch * 2 * size;
        const Bf16* g = from + r * size;
        const float *row = in + r * size, *weights = weight.const_data_ptr<float>();
        float* to = grad_x.mutable_data_ptr<float>() + r * size;
        if (other.defined()) {
          normalize_row_backward(g, row, weights, size, statistics[r], other.const_data_ptr<float>() + r * size, to,
                                 sum, sum + size);
        } else {
          normalize_row_backward(g, row, weights, size, statistics[r], to, sum, sum + size);
        }
      }
    });
    const Tensor totals = sums.sum(0);
    return {grad_x, totals[0], totals[1], Tensor(), Tensor()};
  }
};

void check(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  TORCH_CHECK_VALUE(x.dim() > 0 && weight.sizes() == at::IntArrayRef({x.size(-1)}) && bias.sizes() == weight.sizes(),
                    "[layer norm] expected weight and bias [", x.dim() > 0 ? x.size(-1) : 0, "], got ", weight.sizes(),
                    " and ", bias.sizes());
}

bool in_one_pass(const Tensor& x, const Tensor& weight, at::ScalarType out_type) {
  return x.is_cpu() && x.scalar_type() == at::kFloat && weight.scalar_type() == at::kFloat &&
         out_type == at::kBFloat16 && x.numel() > 0;
}

Tensor rows_of(const Tensor& x) { return x.reshape({-1, x.size(-1)}).contiguous(); }

}  // namespace

Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps, at::ScalarType out_type) {
  check(x, weight, bias);
  if (!in_one_pass(x, weight, out_type)) return at::layer_norm(x, weight.sizes(), weight, bias, eps).to(out_type);
  return LayerNormFunction::apply(rows_of(x), weight, bias, eps, /*beside_input=*/false)[0].view(x.sizes());
}

NormAndInput layer_norm_beside(const Tensor& x, const Tensor& weight, const Tensor& bias, double eps,
                               at::ScalarType out_type) {
  if (!in_one_pass(x, weight, out_type)) return {layer_norm(x, weight, bias, eps, out_type), x};
  check(x, weight, bias);
  const auto both = LayerNormFunction::apply(rows_of(x), weight, bias, eps, /*beside_input=*/true);
  return {both[0].view(x.sizes()), both[1].view(x.sizes())};
}

}  // namespace dalle::layers

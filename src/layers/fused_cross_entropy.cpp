#include "dalle/layers/fused_cross_entropy.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <cmath>

#include "dalle/core/bf16.h"
#include "dalle/core/vector_math.h"
#include "dalle/core/vectorise.h"
#include "dalle/layers/bf16_product.h"

namespace dalle::layers {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kLanes = 16;  // sums of a fixed order that vectorise

DALLE_VECTORISED float maximum_of(const float* row, int64_t size) {
  constexpr int64_t kChains = 4 * kLanes;  // registers of maxima that do not wait for each other
  float maximum[kChains];
  std::fill_n(maximum, kChains, row[0]);
  const int64_t whole = size / kChains * kChains;
  for (int64_t i = 0; i < whole; i += kChains) {
    for (int64_t lane = 0; lane < kChains; ++lane) {
      maximum[lane] = row[i + lane] > maximum[lane] ? row[i + lane] : maximum[lane];
    }
  }
  return std::max(*std::max_element(maximum, maximum + kChains),
                  whole == size ? row[0] : *std::max_element(row + whole, row + size));
}

// row becomes exp(row - shift); returns the sum.
DALLE_VECTORISED float exponentiate(float* row, int64_t size, float shift) {
  float sums[kLanes] = {};
  const int64_t whole = size / kLanes * kLanes;
  for (int64_t i = 0; i < whole; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) {
      row[i + lane] = vector_exp(row[i + lane] - shift);
      sums[lane] += row[i + lane];
    }
  }
  double sum = 0;
  for (const float part : sums) sum += static_cast<double>(part);
  for (int64_t i = whole; i < size; ++i) {
    row[i] = vector_exp(row[i] - shift);
    sum += static_cast<double>(row[i]);
  }
  return static_cast<float>(sum);
}

DALLE_VECTORISED void scaled(const float* row, int64_t size, float factor, uint16_t* out) {
  for (int64_t i = 0; i < size; ++i) out[i] = float_to_bf16(row[i] * factor);
}

DALLE_VECTORISED void scaled(const float* row, int64_t size, float factor, float* out) {
  for (int64_t i = 0; i < size; ++i) out[i] = row[i] * factor;
}

// Losses of rows of f32 logits, which are overwritten; with grad_NV defined (bf16 or f32), their gradient times scale.
void softmax_rows(const Tensor& logits_NV, const Tensor& targets_N, double scale, const Tensor& losses_N,
                  const Tensor& grad_NV) {
  const int64_t vocab = logits_NV.size(1);
  const int64_t* targets = targets_N.const_data_ptr<int64_t>();
  float *logits = logits_NV.mutable_data_ptr<float>(), *losses = losses_N.mutable_data_ptr<float>();
  const auto factor = static_cast<float>(scale);
  at::parallel_for(0, logits_NV.size(0), 1, [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      float* row = logits + n * vocab;
      const int64_t target = targets[n];
      const bool counts = target >= 0;
      const float shift = maximum_of(row, vocab), at_target = counts ? row[target] : 0;
      const float sum = exponentiate(row, vocab, shift);
      losses[n] = counts ? shift + std::log(sum) - at_target : 0;
      if (!grad_NV.defined()) continue;
      const float weight = counts ? factor / sum : 0;
      if (counts) row[target] -= sum;
      if (grad_NV.scalar_type() == at::kBFloat16) {
        scaled(row, vocab, weight, static_cast<uint16_t*>(grad_NV.mutable_data_ptr()) + n * vocab);
      } else {
        scaled(row, vocab, weight, grad_NV.mutable_data_ptr<float>() + n * vocab);
      }
    }
  });
}

// The same op by op, on any device and in any type.
void softmax_by_formula(const Tensor& logits_NV, const Tensor& targets_N, double scale, const Tensor& losses_N,
                        const Tensor& grad_NV) {
  const Tensor log_probability = at::log_softmax(logits_NV, 1);
  const Tensor counts = (targets_N >= 0).unsqueeze(1), index = targets_N.clamp_min(0).unsqueeze(1);
  losses_N.copy_(at::where(counts, log_probability.gather(1, index).neg(), 0).squeeze(1));
  if (!grad_NV.defined()) return;
  Tensor grad = log_probability.exp();
  grad.scatter_add_(1, index, at::full(index.sizes(), -1, grad.options()));
  grad_NV.copy_(grad * counts * scale);
}

// Rows up to a multiple of 32, so that all chunks are whole tiles: the filling has no target.
Tensor with_filling(const Tensor& x, double filling) {
  const int64_t missing = (32 - x.size(0) % 32) % 32;
  if (missing == 0) return x;
  auto sizes = x.sizes().vec();
  sizes[0] = missing;
  return at::cat({x, at::full(sizes, filling, x.options())});
}

// A multiple of 32, so that gradients of whole stretches are tiles too.
int64_t rows_within(int64_t numbers, int64_t vocab) { return std::max<int64_t>(32, numbers / vocab / 32 * 32); }

// The head over chunks of rows.
class Head {
 public:
  Head(const Tensor& hidden, const Tensor& weight, const Tensor& bias, at::ScalarType compute)
      : hidden_(with_filling(hidden.to(compute).contiguous(), 0)),
        sum_type_(at::promote_types(compute, at::kFloat)),
        weight_(fits_tiles(weight) ? weight : weight.to(compute).contiguous()),
        by_tiles_(fits_tiles(weight_)) {
    if (bias.defined()) bias_ = bias.to(by_tiles_ ? at::kFloat : sum_type_);
    if (by_tiles_) packed_ = pack_nt(weight_);
  }

  int64_t rows() const { return hidden_.size(0); }
  int64_t chunk() const { return rows_of_gradients_at_once(weight_.size(0), hidden_.scalar_type()); }

  Tensor logits(int64_t first, int64_t count) const {
    const Tensor h = hidden_.slice(0, first, first + count);
    if (by_tiles_) return product(h, packed_, at::kFloat, bias_);
    Tensor out = at::mm(h, weight_.t()).to(sum_type_);
    return bias_ ? out.add_(*bias_) : out;
  }

  void start_gradients() {
    hidden_gradient_ = at::empty_like(hidden_);
    bias_gradient_ = at::zeros({weight_.size(0)}, weight_.options().dtype(sum_type_));
    if (by_tiles_ && rows() > chunk()) packed_for_gradient_ = pack_nn(weight_);
  }

  void add_gradients(int64_t first, const Tensor& grad_logits) {
    const Tensor h = hidden_.slice(0, first, first + grad_logits.size(0));
    const Tensor into = hidden_gradient_.slice(0, first, first + grad_logits.size(0));
    into.copy_(hidden_gradient_of(grad_logits));
    if (fits_linear_gradients(grad_logits, h)) {
      const auto gradients = linear_gradients(grad_logits, h, weight_gradient_);  // undefined at first
      weight_gradient_ = gradients.w;
      bias_gradient_.add_(gradients.b);
    } else {
      const Tensor gradient = at::mm(grad_logits.t(), h).to(sum_type_);
      weight_gradient_ = weight_gradient_.defined() ? weight_gradient_.add_(gradient) : gradient;
      bias_gradient_.add_(at::sum(grad_logits, {0}, /*keepdim=*/false, sum_type_));
    }
  }

  Tensor hidden_gradient_of(const Tensor& grad_logits) const {
    if (!by_tiles_) return at::mm(grad_logits, weight_);
    if (packed_for_gradient_) return product(grad_logits, *packed_for_gradient_, hidden_.scalar_type());
    return product_nn(grad_logits, weight_, hidden_.scalar_type());
  }

  Tensor losses_of(int64_t first, int64_t count, const Tensor& targets_N, double scale, bool wants_gradient) {
    Tensor losses = at::empty({count}, hidden_.options().dtype(sum_type_)), grad;
    if (wants_gradient) grad = at::empty({count, weight_.size(0)}, hidden_.options());
    const int64_t step = rows_of_logits_at_once(weight_.size(0), hidden_.device().type());
    for (int64_t row = 0; row < count; row += step) {
      const int64_t end = std::min(count, row + step);
      const Tensor targets = targets_N.slice(0, first + row, first + end);
      const Tensor some = logits(first + row, end - row), losses_here = losses.slice(0, row, end);
      const Tensor grad_here = wants_gradient ? grad.slice(0, row, end) : Tensor();
      if (some.is_cpu() && some.scalar_type() == at::kFloat) {
        softmax_rows(some, targets, scale, losses_here, grad_here);
      } else {
        softmax_by_formula(some, targets, scale, losses_here, grad_here);
      }
    }
    if (wants_gradient) add_gradients(first, grad);
    return losses;
  }

  const Tensor& hidden_gradient() const { return hidden_gradient_; }
  const Tensor& weight_gradient() const { return weight_gradient_; }
  const Tensor& bias_gradient() const { return bias_gradient_; }

 private:
  bool fits_tiles(const Tensor& weight) const {
    return fits_bf16_product(hidden_, weight, weight.size(1), weight.size(0)) &&
           fits_bf16_product(hidden_, weight, weight.size(0), weight.size(1));
  }

  Tensor hidden_;
  at::ScalarType sum_type_;
  Tensor weight_;  // in the compute type, or as it is if it can be packed so
  bool by_tiles_;
  std::optional<Tensor> bias_;
  PackedMatrix packed_;
  std::optional<PackedMatrix> packed_for_gradient_;  // where several stretches of rows use it
  Tensor hidden_gradient_, weight_gradient_, bias_gradient_;
};

struct LinearCrossEntropyFunction : torch::autograd::Function<LinearCrossEntropyFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& hidden, const Tensor& weight,
                        const std::optional<Tensor>& bias, const Tensor& targets, at::ScalarType compute, double scale,
                        bool wants_gradient) {
    Head head(hidden, weight, bias.value_or(Tensor()), compute);
    if (wants_gradient) head.start_gradients();
    const Tensor padded_targets = with_filling(targets, -1);
    Tensor sum = at::zeros({}, hidden.options().dtype(hidden.scalar_type() == at::kDouble ? at::kDouble : at::kFloat));
    for (int64_t first = 0; first < head.rows(); first += head.chunk()) {
      const int64_t count = std::min(head.chunk(), head.rows() - first);
      sum.add_(head.losses_of(first, count, padded_targets, scale, wants_gradient).sum(at::kDouble));
    }
    if (wants_gradient) {
      context->save_for_backward(
          {head.hidden_gradient().slice(0, 0, hidden.size(0)), head.weight_gradient(), head.bias_gradient()});
      context->saved_data["hidden_type"] = hidden.scalar_type();
      context->saved_data["has_bias"] = bias.has_value();
    }
    return sum * scale;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    // On the CPU a look costs nothing, and the usual factor, 1, saves a pass over the gradients.
    const bool is_one = grads[0].is_cpu() && grads[0].item<double>() == 1;
    const auto times_grad = [&](const Tensor& x) { return is_one ? x : x * grads[0].to(x.scalar_type()); };
    variable_list out(7);
    out[0] = times_grad(saved[0].to(context->saved_data["hidden_type"].toScalarType()));
    out[1] = times_grad(saved[1]);
    if (context->saved_data["has_bias"].toBool()) out[2] = times_grad(saved[2]);
    return out;
  }
};

void check(const Tensor& hidden, const Tensor& weight, const Tensor& bias, const Tensor& targets) {
  TORCH_CHECK_VALUE(hidden.dim() == 2 && weight.dim() == 2 && hidden.size(1) == weight.size(1) &&
                        targets.sizes() == at::IntArrayRef({hidden.size(0)}) &&
                        (!bias.defined() || bias.sizes() == at::IntArrayRef({weight.size(0)})),
                    "[cross entropy] expected hidden [N, D], weight [V, D], bias [V] and targets [N], got ",
                    hidden.sizes(), ", ", weight.sizes(), ", ", bias.defined() ? bias.sizes() : at::IntArrayRef{},
                    " and ", targets.sizes());
  if (!targets.is_cpu() || targets.numel() == 0) return;  // a GPU would have to be waited for
  const int64_t largest = targets.max().item<int64_t>();
  TORCH_CHECK_VALUE(largest < weight.size(0), "[cross entropy] target ", largest, " of a vocabulary of ",
                    weight.size(0));
}

}  // namespace

int64_t rows_of_logits_at_once(int64_t vocab, at::DeviceType device) {
  return rows_within((device == at::kCPU ? int64_t{1} : int64_t{4}) << 20, vocab);
}

int64_t rows_of_gradients_at_once(int64_t vocab, at::ScalarType compute_dtype) {
  return rows_within((int64_t{16} << 20) / static_cast<int64_t>(c10::elementSize(compute_dtype)), vocab);
}

Tensor linear_cross_entropy(const Tensor& hidden, const Tensor& weight, const Tensor& bias, const Tensor& targets,
                            at::ScalarType compute_dtype, double scale) {
  check(hidden, weight, bias, targets);
  const bool wants_gradient = at::GradMode::is_enabled() && (hidden.requires_grad() || weight.requires_grad() ||
                                                             (bias.defined() && bias.requires_grad()));
  const auto optional_bias = bias.defined() ? std::optional<Tensor>(bias) : std::nullopt;
  return LinearCrossEntropyFunction::apply(hidden, weight, optional_bias, targets.contiguous(), compute_dtype, scale,
                                           wants_gradient);
}

Tensor linear_cross_entropy_each(const Tensor& hidden, const Tensor& weight, const Tensor& bias, const Tensor& targets,
                                 at::ScalarType compute_dtype) {
  check(hidden, weight, bias, targets);
  const c10::NoGradGuard no_grad;
  Head head(hidden, weight, bias, compute_dtype);
  const Tensor padded_targets = with_filling(targets, -1);
  std::vector<Tensor> losses;
  for (int64_t first = 0; first < head.rows(); first += head.chunk()) {
    const int64_t count = std::min(head.chunk(), head.rows() - first);
    losses.push_back(head.losses_of(first, count, padded_targets, 1, /*wants_gradient=*/false));
  }
  return at::cat(losses).slice(0, 0, hidden.size(0));
}

}  // namespace dalle::layers

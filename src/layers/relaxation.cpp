#include "dalle/layers/relaxation.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <cmath>

#include "dalle/layers/channels_last.h"
#include "dalle/layers/relaxation_kernels.h"

namespace dalle::layers {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Whether nobody else can see this tensor's memory: no other handle, and no other tensor over its storage than the one it
// is a view of.
bool is_only_handle(const Tensor& tensor) {
  if (tensor.use_count() > 1) return false;
  if (!tensor.is_view()) return tensor.storage().use_count() == 1;
  return tensor._base().use_count() == 1 && tensor.storage().use_count() == 2;
}

struct RelaxFunction : torch::autograd::Function<RelaxFunction> {
  static variable_list forward(AutogradContext* context, const Tensor& logits_BVHW, const Tensor& keys_B2,
                               double temperature, bool straight_through) {
    const Tensor logits_NV = channel_rows(logits_BVHW);
    const auto rows = logits_NV.is_cuda() ? detail::relax_rows_cuda(logits_NV, keys_B2, temperature, straight_through)
                                          : detail::relax_rows_cpu(logits_NV, keys_B2, temperature, straight_through);
    context->save_for_backward({logits_NV, rows.soft_NV, rows.statistics.log_normalizer_N, rows.statistics.kl_N});
    context->saved_data["temperature"] = temperature;
    context->saved_data["sizes"] = logits_BVHW.sizes().vec();
    context->set_materialize_grads(false);
    const auto sizes = logits_BVHW.sizes();
    return {from_channel_rows(straight_through ? rows.hard_NV : rows.soft_NV, sizes),
            rows.statistics.kl_N.view({sizes[0], sizes[2], sizes[3]})};
  }

  // By reference: whoever holds the incoming gradient besides us decides whether its memory may be reused.
  static variable_list backward(AutogradContext* context, variable_list& grads) {
    const auto saved = context->get_saved_variables();
    const double temperature = context->saved_data["temperature"].toDouble();
    Tensor grad_codes_NV;
    bool is_ours = false;
    if (grads[0].defined()) {
      is_ours = is_only_handle(grads[0]);
      grad_codes_NV = channel_rows(grads[0].to(saved[0].scalar_type()));
    }
    const Tensor grad_NV = is_ours ? grad_codes_NV : at::empty_like(saved[0]);
    const Tensor grad_kl_N = grads[1].defined() ? grads[1].reshape({-1}) : Tensor();
    const auto backward_rows = saved[0].is_cuda() ? detail::relax_rows_backward_cuda : detail::relax_rows_backward_cpu;
    backward_rows(grad_codes_NV, grad_kl_N, saved[0], saved[1], {saved[2], saved[3]}, temperature, grad_NV);
    return {from_channel_rows(grad_NV, context->saved_data["sizes"].toIntVector()), Tensor(), Tensor(), Tensor()};
  }
};

// For f64, where exactness is the point.
Relaxation relax_by_formula(const Tensor& logits_BVHW, std::span<const RandomKey> keys, double temperature,
                            bool straight_through) {
  const auto sizes = logits_BVHW.sizes();
  const Tensor noise = gumbel_rows(keys, sizes[1] * sizes[2] * sizes[3], logits_BVHW.device()).to(at::kDouble);
  Tensor codes = gumbel_softmax(logits_BVHW, from_channel_rows(noise.view({-1, sizes[1]}), sizes), temperature);
  if (straight_through) {
    const Tensor hard = one_hot_codes(argmax_codes(codes.detach()), sizes[1]).to(at::kDouble);
    codes = hard + (codes - codes.detach());  // exactly one-hot in value
  }
  return {codes, kl_to_uniform(logits_BVHW)};
}

}  // namespace

Relaxation relax(const Tensor& logits_BVHW, std::span<const RandomKey> keys, double temperature,
                 bool straight_through) {
  TORCH_CHECK_VALUE(logits_BVHW.dim() == 4 && logits_BVHW.size(0) == static_cast<int64_t>(keys.size()),
                    "[relax] expected logits [B, V, H, W] and a key for each of the B pictures, got ",
                    logits_BVHW.sizes(), " and ", keys.size(), " keys");
  TORCH_CHECK_VALUE(temperature > 0, "[relax] temperature must be above 0, got ", temperature);
  if (logits_BVHW.scalar_type() == at::kDouble)
    return relax_by_formula(logits_BVHW, keys, temperature, straight_through);
  auto out =
      RelaxFunction::apply(logits_BVHW, random_keys_tensor(keys, logits_BVHW.device()), temperature, straight_through);
  return {out[0], out[1]};
}

Tensor gumbel_softmax(const Tensor& logits_BVHW, const Tensor& gumbel_BVHW, double temperature) {
  return at::softmax((logits_BVHW + gumbel_BVHW) / temperature, 1);
}

Tensor kl_to_uniform(const Tensor& logits_BVHW) {
  const Tensor log_q = at::log_softmax(logits_BVHW, 1);
  const double log_vocab = std::log(static_cast<double>(logits_BVHW.size(1)));
  return (log_q.exp() * log_q).sum(1) + log_vocab;
}

Tensor argmax_codes(const Tensor& logits_BVHW) { return logits_BVHW.argmax(1); }

Tensor one_hot_codes(const Tensor& codes_BHW, int64_t vocab_size) {
  Tensor out = at::zeros({codes_BHW.size(0), vocab_size, codes_BHW.size(1), codes_BHW.size(2)},
                         codes_BHW.options().dtype(at::kFloat).memory_format(at::MemoryFormat::ChannelsLast));
  return out.scatter_(1, codes_BHW.unsqueeze(1), 1.0);
}

}  // namespace dalle::layers

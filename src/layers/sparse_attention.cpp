#include "dalle/layers/sparse_attention.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

namespace dalle::layers {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;
using Plan = std::shared_ptr<const BlockSparsePlan>;

struct SparseAttentionFunction : torch::autograd::Function<SparseAttentionFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& q, const Tensor& k, const Tensor& v, const Plan& plan,
                        const AttentionDropout& dropout) {
    const auto result = detail::attend_blocks(q, k, v, *plan, dropout);
    context->save_for_backward({q, k, v, result.out_BLHK, result.log_normalizer_BHL});
    context->saved_data["plan"] = c10::IValue::make_capsule(c10::make_intrusive<Holder>(plan, dropout));
    return result.out_BLHK.transpose(1, 2);
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const auto holder = context->saved_data["plan"].toCapsule();
    const auto& [plan, dropout] = static_cast<const Holder&>(*holder).content;
    const auto gradients =
        detail::attend_blocks_backward(grads[0], saved[0], saved[1], saved[2], {saved[3], saved[4]}, *plan, dropout);
    return {gradients.q_BHLK, gradients.k_BHLK, gradients.v_BHLK, Tensor(), Tensor()};
  }

  struct Holder : torch::CustomClassHolder {
    Holder(Plan plan, AttentionDropout dropout) : content(std::move(plan), std::move(dropout)) {}
    std::pair<Plan, AttentionDropout> content;
  };
};

}  // namespace

Tensor block_sparse_attention(const Tensor& q, const Tensor& k, const Tensor& v, Plan plan,
                              const AttentionDropout& dropout) {
  dropout.check_batch(q.size(0));
  const auto type = q.scalar_type();
  TORCH_CHECK_VALUE(
      q.is_cpu() && (type == at::kFloat || type == at::kBFloat16) && k.scalar_type() == type && v.scalar_type() == type,
      "[sparse attention] expected f32 or bf16 tensors of one type on the CPU, got ", q.toString(), ", ", k.toString(),
      " and ", v.toString());
  TORCH_CHECK_VALUE(q.dim() == 4 && q.sizes() == k.sizes() && q.sizes() == v.sizes() && q.size(2) == plan->length,
                    "[sparse attention] expected q, k and v of [B, H, ", plan->length, ", K], got ", q.sizes(), ", ",
                    k.sizes(), " and ", v.sizes());
  const auto with_rows = [](const Tensor& x) { return x.stride(3) == 1 ? x : x.contiguous(); };
  return SparseAttentionFunction::apply(with_rows(q), with_rows(k), with_rows(v), plan, dropout);
}

AttendFunction sparse_attention(Plan plan, AttentionDropout dropout) {
  return [plan = std::move(plan), dropout = std::move(dropout)](const Tensor& q, const Tensor& k, const Tensor& v) {
    return block_sparse_attention(q, k, v, plan, dropout);
  };
}

}  // namespace dalle::layers

#include "dalle/layers/heads.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

namespace dalle::layers {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Of [B, L, 3, H, K].
Heads parts_of(const Tensor& whole_BL3HK) {
  const auto part = [&](int64_t i) { return whole_BL3HK.select(2, i).transpose(1, 2); };
  return {part(0), part(1), part(2)};
}

// [B, L, 3, H, K] whose parts are these, without a copy, or undefined where they are not parts of one.
Tensor whole_of(const variable_list& parts) {
  const Tensor& q = parts[0];
  const int64_t batch = q.size(0), heads = q.size(1), length = q.size(2), size = q.size(3), row = 3 * heads * size;
  for (int64_t i = 0; i < 3; ++i) {
    const Tensor& part = parts[static_cast<size_t>(i)];
    const bool is_part = part.is_alias_of(q) && part.strides() == at::IntArrayRef({length * row, size, row, 1}) &&
                         part.storage_offset() == q.storage_offset() + i * heads * size;
    if (!is_part) return {};
  }
  return q.as_strided({batch, length, 3, heads, size}, {length * row, row, heads * size, size, 1});
}

struct SplitHeads : torch::autograd::Function<SplitHeads> {
  static variable_list forward(AutogradContext* /*context*/, const Tensor& qkv_BL3HK) {
    const Heads heads = parts_of(qkv_BL3HK);
    return {heads.q_BHLK, heads.k_BHLK, heads.v_BHLK};
  }

  static variable_list backward(AutogradContext* /*context*/, variable_list grads) {
    const Tensor whole = whole_of(grads);
    return {whole.defined() ? whole : at::stack(grads, 2).permute({0, 3, 2, 1, 4})};
  }
};

}  // namespace

Heads split_heads(const Tensor& qkv, int64_t num_heads) {
  TORCH_CHECK_VALUE(qkv.dim() == 3 && num_heads > 0 && qkv.size(2) % (3 * num_heads) == 0,
                    "[attention] expected projections [B, L, 3 heads head_dim] of ", num_heads, " heads, got ",
                    qkv.sizes());
  const auto parts =
      SplitHeads::apply(qkv.view({qkv.size(0), qkv.size(1), 3, num_heads, qkv.size(2) / (3 * num_heads)}));
  return {parts[0], parts[1], parts[2]};
}

Heads empty_heads(const Tensor& like) {
  return parts_of(at::empty({like.size(0), like.size(2), 3, like.size(1), like.size(3)}, like.options()));
}

}  // namespace dalle::layers

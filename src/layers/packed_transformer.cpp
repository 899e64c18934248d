#include "dalle/layers/packed_transformer.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "dalle/layers/bf16_pack.h"
#include "dalle/layers/inference_rows.h"
#include "dalle/layers/sparse_attention.h"

namespace dalle::layers {
namespace {

constexpr int64_t kMultiple = detail::kPackDepth;
constexpr int64_t kMaxHeadDim = 256;  // of detail::attend_row

Epilogue epilogue_of(Activation activation) {
  return activation == Activation::kQuickGelu ? Epilogue::kQuickGelu : Epilogue::kGelu;
}

Tensor rows_with_zeros(const Tensor& x_NI, int64_t columns) {
  if (x_NI.size(1) == columns) return x_NI;
  return at::constant_pad_nd(x_NI, {0, columns - x_NI.size(1)});
}

PackedMatrix pack_weight(const Tensor& weight_OI) {
  const int64_t depth = (weight_OI.size(1) + kMultiple - 1) / kMultiple * kMultiple;
  return pack_nt(rows_with_zeros(weight_OI.detach().to(at::kBFloat16), depth).contiguous());
}

std::vector<PackedLinear> pack_qkv(const Attention& attn, bool is_last) {
  const Tensor weight = attn.in_proj_weight.tensor, bias = attn.in_proj_bias.tensor;
  if (!is_last) return {PackedLinear(weight, bias)};
  const int64_t dim = weight.size(1);
  return {PackedLinear(weight.slice(0, 0, dim), bias.slice(0, 0, dim)),
          PackedLinear(weight.slice(0, dim), bias.slice(0, dim))};
}

// One query a sequence [B, D] against its keys and values [B, L, 2D], those up to last_B[b]: [B, D].
Tensor attend_once(const Tensor& q_BD, const Tensor& kv_BLD, int64_t num_heads, const Tensor& last_B) {
  const int64_t dim = q_BD.size(1), length = kv_BLD.size(1), head_dim = dim / num_heads;
  const Tensor out = at::empty_like(q_BD), last = last_B.contiguous();
  const auto bits = [](const Tensor& x) { return static_cast<const uint16_t*>(x.const_data_ptr()); };
  const int64_t* last_of = last.const_data_ptr<int64_t>();
  auto* out_bits = static_cast<uint16_t*>(out.mutable_data_ptr());
  at::parallel_for(0, q_BD.size(0) * num_heads, 16, [&](int64_t begin, int64_t end) {
    std::vector<float> scores(static_cast<size_t>(length));
    for (int64_t i = begin; i < end; ++i) {
      const int64_t batch = i / num_heads, at = i % num_heads * head_dim;
      const uint16_t* keys = bits(kv_BLD) + batch * length * 2 * dim + at;
      detail::attend_row(bits(q_BD) + batch * dim + at, keys, keys + dim, 2 * dim, last_of[batch] + 1, head_dim,
                         scores.data(), out_bits + batch * dim + at);
    }
  });
  return out;
}

}  // namespace

PackedLinear::PackedLinear(const Tensor& weight_OI, const Tensor& bias_O)
    : matrix_(pack_weight(weight_OI)), bias_(bias_O.defined() ? bias_O.detach().contiguous() : bias_O) {}

Tensor PackedLinear::with_padding(const Tensor& x_NI) const { return rows_with_zeros(x_NI, matrix_.depth); }

Tensor PackedLinear::forward(const Tensor& x_NI, at::ScalarType out_type, Epilogue epilogue) const {
  return product(with_padding(x_NI), matrix_, out_type, bias_.defined() ? std::optional(bias_) : std::nullopt,
                 epilogue);
}

void PackedLinear::add_to(Tensor& sum_NO, const Tensor& x_NI) const {
  add_product(sum_NO, with_padding(x_NI), matrix_, bias_.defined() ? std::optional(bias_) : std::nullopt);
}

PackedTransformer::Block::Block(const TransformerBlock& block, bool is_last)
    : source(&block),
      qkv(pack_qkv(block.attn, is_last)),
      out_proj(block.attn.out_proj.weight.tensor, block.attn.out_proj.bias->tensor),
      c_fc(block.mlp.c_fc.weight.tensor, block.mlp.c_fc.bias->tensor),
      c_proj(block.mlp.c_proj.weight.tensor, block.mlp.c_proj.bias->tensor),
      activation(epilogue_of(block.mlp.activation)) {}

bool PackedTransformer::fits(const Transformer& transformer) {
  if (!has_bf16_products() || transformer.resblocks.empty()) return false;
  for (const auto& block : transformer.resblocks) {
    const Tensor& weight = block->attn.in_proj_weight.tensor;
    if (block->ln_1_post || block->attn.q_norm || weight.size(1) / block->attn.num_heads > kMaxHeadDim ||
        !weight.is_cpu() || weight.size(1) % kMultiple != 0)
      return false;
  }
  return true;
}

PackedTransformer::PackedTransformer(const Transformer& transformer)
    : num_heads_(transformer.resblocks.front()->attn.num_heads) {
  TORCH_CHECK_VALUE(fits(transformer), "[packed transformer] these blocks or this processor do not fit");
  for (const auto& block : transformer.resblocks) {
    blocks_.emplace_back(*block, /*is_last=*/block == transformer.resblocks.back());
  }
}

Tensor PackedTransformer::mlp_of(const Block& block, Tensor x_ND) const {
  const Tensor hidden = block.c_fc.forward(layer_norm_bf16(block.source->ln_2, x_ND), at::kBFloat16, block.activation);
  block.c_proj.add_to(x_ND, hidden);
  return x_ND;
}

Tensor PackedTransformer::forward(const Tensor& x_BLD, std::shared_ptr<const BlockSparsePlan> plan,
                                  const Tensor& position_B, const Tensor& last_B) const {
  const int64_t batch = x_BLD.size(0), length = x_BLD.size(1), dim = x_BLD.size(2);
  Tensor x_ND = x_BLD.reshape({batch * length, dim});
  if (x_ND.is_alias_of(x_BLD)) x_ND = x_ND.clone();
  for (const Block& block : blocks_) {
    const Tensor normed = layer_norm_bf16(block.source->ln_1, x_ND);
    if (block.qkv.size() == 2) {
      const Tensor rows = at::arange(batch, position_B.options()) * length + position_B;
      const Tensor q = block.qkv[0].forward(normed.index_select(0, rows), at::kBFloat16);
      const Tensor kv = block.qkv[1].forward(normed, at::kBFloat16).view({batch, length, 2 * dim});
      x_ND = x_ND.index_select(0, rows);
      block.out_proj.add_to(x_ND, attend_once(q, kv, num_heads_, last_B));
    } else {
      const auto qkv = block.qkv[0]
                           .forward(normed, at::kBFloat16)
                           .view({batch, length, 3, num_heads_, dim / num_heads_})
                           .permute({2, 0, 3, 1, 4})
                           .unbind(0);
      const Tensor attended = block_sparse_attention(qkv[0], qkv[1], qkv[2], plan);
      block.out_proj.add_to(x_ND, attended.transpose(1, 2).reshape({batch * length, dim}));
    }
    x_ND = mlp_of(block, x_ND);
  }
  return x_ND;
}

}  // namespace dalle::layers

#include "dalle/layers/transformer.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>

#include "dalle/layers/heads.h"
#include "dalle/layers/linear_function.h"

namespace dalle::layers {
namespace {

Init matrix_init(const TransformerOptions& options, int64_t fan_in, double extra = 1.0) {
  return Init::normal(options.init_std_scale * extra / std::sqrt(static_cast<double>(fan_in)));
}

// Of what goes to the residual stream: f32 also where products are in bf16.
at::ScalarType stream_type(const Tensor& x) { return at::promote_types(x.scalar_type(), at::kFloat); }

}  // namespace

Tensor mask_to_bias(const Tensor& visible_LL, at::ScalarType dtype) {
  return at::zeros(visible_LL.sizes(), visible_LL.options().dtype(dtype))
      .masked_fill_(visible_LL.logical_not(), -std::numeric_limits<double>::infinity());
}

AttendFunction dense_attention(Tensor bias_LL, AttentionDropout dropout) {
  return [bias = std::move(bias_LL), dropout = std::move(dropout)](const Tensor& q, const Tensor& k, const Tensor& v) {
    const auto mask = bias.defined() ? std::optional<Tensor>(bias) : std::nullopt;
    if (!dropout.is_on()) return at::scaled_dot_product_attention(q, k, v, mask);
    dropout.check_batch(q.size(0));
    const auto type = stream_type(q);
    const Tensor scores =
        at::matmul(q.to(type), k.to(type).transpose(2, 3)) / std::sqrt(static_cast<double>(q.size(3)));
    const Tensor weights = at::softmax(mask ? scores + *mask : scores, -1);
    const Tensor dropped = weights * dropout.factors(q.size(1), q.size(2), q.device());
    return at::matmul(dropped, v.to(type)).to(q.scalar_type());
  };
}

Attention::Attention(Module& parent, std::string name, const TransformerOptions& options)
    : Module(parent, std::move(name)),
      in_proj_weight(
          add_parameter("in_proj_weight", {3 * options.dim, options.dim}, matrix_init(options, options.dim))),
      in_proj_bias(add_parameter("in_proj_bias", {3 * options.dim}, Init::zeros(), /*decays=*/false)),
      out_proj(*this, "out_proj",
               {.in = options.dim,
                .out = options.dim,
                .init = matrix_init(options, options.dim, options.residual_init_scale)}),
      num_heads(options.num_heads) {
  if (!options.qk_norm) return;
  q_norm.emplace(*this, "q_norm", options.dim / options.num_heads);
  k_norm.emplace(*this, "k_norm", options.dim / options.num_heads);
}

Tensor Attention::forward(const Tensor& x_BLD, const AttendFunction& attend, const Tensor& addend) const {
  const int64_t batch = x_BLD.size(0), length = x_BLD.size(1), dim = x_BLD.size(2);
  const Tensor qkv = linear(x_BLD, in_proj_weight.tensor, in_proj_bias.tensor, x_BLD.scalar_type());
  const Heads heads = split_heads(qkv, num_heads);
  const auto normed = [&](const std::optional<LayerNorm>& norm, const Tensor& x) {
    return norm ? norm->forward(x, x.scalar_type()) : x;
  };
  const Tensor out_BHLK = attend(normed(q_norm, heads.q_BHLK), normed(k_norm, heads.k_BHLK), heads.v_BHLK);
  return out_proj.forward(out_BHLK.transpose(1, 2).reshape({batch, length, dim}), stream_type(x_BLD),
                          /*of_input=*/{}, addend);
}

Mlp::Mlp(Module& parent, std::string name, const TransformerOptions& options)
    : Module(parent, std::move(name)),
      c_fc(*this, "c_fc",
           {.in = options.dim, .out = options.dim * options.mlp_ratio, .init = matrix_init(options, options.dim)}),
      c_proj(*this, "c_proj",
             {.in = options.dim * options.mlp_ratio,
              .out = options.dim,
              .init = matrix_init(options, options.dim * options.mlp_ratio, options.residual_init_scale)}),
      activation(options.activation) {}

Tensor Mlp::forward(const Tensor& x, const Tensor& addend) const {
  return c_proj.forward(c_fc.forward(x), stream_type(x), activation, addend);
}

TransformerBlock::TransformerBlock(Module& parent, std::string name, const TransformerOptions& options)
    : Module(parent, std::move(name)),
      ln_1(*this, "ln_1", options.dim),
      attn(*this, "attn", options),
      ln_2(*this, "ln_2", options.dim),
      mlp(*this, "mlp", options),
      compute_dtype(options.compute_dtype) {
  if (!options.sandwich_norm) return;
  ln_1_post.emplace(*this, "ln_1_post", options.dim);
  ln_2_post.emplace(*this, "ln_2_post", options.dim);
}

Tensor TransformerBlock::forward(const Tensor& x_BLD, const AttendFunction& attend, BlockRunner& runner, int64_t layer,
                                 const Dropout& dropout) const {
  // A branch ends in a linear layer, which adds x to its result where nothing comes between.
  const auto run = [&](int64_t index, const Tensor& input, const LayerNorm& norm, const std::optional<LayerNorm>& post,
                       auto branch) {
    return runner.run(index, input, [this, index, &norm, &post, branch, dropout](const Tensor& x) {
      const auto [normed, skip] = norm.forward_beside(x, compute_dtype);
      const bool is_branchs_type = skip.scalar_type() == stream_type(normed);
      if (is_branchs_type && !post && dropout.rate == 0) return branch(normed, skip);
      const Tensor out = branch(normed, Tensor());
      return skip + dropout.apply((post ? post->forward(out) : out).to(skip.scalar_type()), index + 1);
    });
  };
  const Tensor after_attention =
      run(2 * layer, x_BLD, ln_1, ln_1_post,
          [this, attend](const Tensor& x, const Tensor& addend) { return attn.forward(x, attend, addend); });
  return run(2 * layer + 1, after_attention, ln_2, ln_2_post,
             [this](const Tensor& x, const Tensor& addend) { return mlp.forward(x, addend); });
}

Transformer::Transformer(Module& parent, std::string name, const TransformerOptions& options)
    : Module(parent, std::move(name)), resblocks_scope(*this, "resblocks") {
  for (int64_t layer = 0; layer < options.num_layers; ++layer) {
    resblocks.push_back(std::make_unique<TransformerBlock>(resblocks_scope, std::to_string(layer), options));
  }
}

Tensor Transformer::forward(const Tensor& x_BLD, const std::function<AttendFunction(int64_t)>& attend_of,
                            BlockRunner& runner, int64_t first_layer, const Dropout& dropout) const {
  Tensor x = x_BLD;
  for (size_t layer = 0; layer < resblocks.size(); ++layer) {
    const auto index = static_cast<int64_t>(layer);
    x = resblocks[layer]->forward(x, attend_of(index), runner, first_layer + index, dropout);
  }
  return x;
}

}  // namespace dalle::layers

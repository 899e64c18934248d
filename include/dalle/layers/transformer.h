// Pre-norm transformer blocks shared by the prior and both CLIP towers. Parameter names are those of OpenAI's CLIP state
// dict: "resblocks.0.attn.in_proj_weight", "resblocks.0.mlp.c_fc.weight", ...
//
// Tensor suffixes: B batch, L positions, D dim, H heads, K head_dim.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "dalle/layers/activation.h"
#include "dalle/layers/block_runner.h"
#include "dalle/layers/dropout.h"
#include "dalle/layers/leaf.h"

namespace dalle::layers {

struct TransformerOptions {
  int64_t dim = 256;
  int64_t num_heads = 8;
  int64_t num_layers = 4;
  int64_t mlp_ratio = 4;
  Activation activation = Activation::kGelu;
  double init_std_scale = 1.0;       // weights N(0, (scale / sqrt(fan_in))^2)
  double residual_init_scale = 1.0;  // extra factor on the two output projections of each layer
  bool sandwich_norm = false;  // a second layer norm on what each residual branch gives (Ding et al. 2021, CogView)
  bool qk_norm = false;        // layer norm over head_dim on queries and keys (Henry et al. 2020)
  at::ScalarType compute_dtype = at::kFloat;  // matrix work; the residual stream and layer norms stay f32
};

/// q, k, v in [B, H, L, K] of the compute type -> the attention output in the same shape. The softmax scale is 1/sqrt(K).
/// Training passes dense attention with a mask; sampling passes attention over a cache. Blocks know neither.
using AttendFunction = std::function<Tensor(const Tensor& q, const Tensor& k, const Tensor& v)>;

/// Dense attention; `bias_LL` is an additive mask (0 or -inf) of the compute type, or undefined for no mask. With dropout
/// op by op, weights in f32, on any device.
AttendFunction dense_attention(Tensor bias_LL, AttentionDropout dropout = {});

/// 0 where `visible` is true, -inf elsewhere.
Tensor mask_to_bias(const Tensor& visible_LL, at::ScalarType dtype);

struct Attention : Module {
  Attention(Module& parent, std::string name, const TransformerOptions& options);
  /// x in the compute type; the result in f32 (f64 for f64), not rounded again before it joins the residual stream, which
  /// is the addend, or is added later.
  Tensor forward(const Tensor& x_BLD, const AttendFunction& attend, const Tensor& addend_BLD = {}) const;
  Parameter& in_proj_weight;  // [3D, D]: q, k, v
  Parameter& in_proj_bias;
  Linear out_proj;
  std::optional<LayerNorm> q_norm;  // with qk_norm: over head_dim, one gain for all heads
  std::optional<LayerNorm> k_norm;
  int64_t num_heads;
};

struct Mlp : Module {
  Mlp(Module& parent, std::string name, const TransformerOptions& options);
  Tensor forward(const Tensor& x, const Tensor& addend = {}) const;  // types as Attention's
  Linear c_fc;
  Linear c_proj;
  Activation activation;
};

/// x + attn(ln_1(x)), then x + mlp(ln_2(x)): two residual blocks, run as indices 2*layer and 2*layer + 1. With
/// sandwich_norm the branches are ln_1_post(attn(..)) and ln_2_post(mlp(..)), in f32. Dropout is the last thing on a
/// branch; its place is the block's index + 1.
struct TransformerBlock : Module {
  TransformerBlock(Module& parent, std::string name, const TransformerOptions& options);
  Tensor forward(const Tensor& x_BLD, const AttendFunction& attend, BlockRunner& runner, int64_t layer,
                 const Dropout& dropout = {}) const;
  LayerNorm ln_1;
  Attention attn;
  LayerNorm ln_2;
  Mlp mlp;
  std::optional<LayerNorm> ln_1_post;  // with sandwich_norm
  std::optional<LayerNorm> ln_2_post;
  at::ScalarType compute_dtype;
};

/// The stack "resblocks.0" ... "resblocks.N-1".
struct Transformer : Module {
  Transformer(Module& parent, std::string name, const TransformerOptions& options);
  /// attend_of(layer) gives each layer's attention. first_layer: layers of the model that ran before this stack, for the
  /// runner's indices.
  Tensor forward(const Tensor& x_BLD, const std::function<AttendFunction(int64_t layer)>& attend_of,
                 BlockRunner& runner, int64_t first_layer = 0, const Dropout& dropout = {}) const;
  Module resblocks_scope;
  std::vector<std::unique_ptr<TransformerBlock>> resblocks;
};

}  // namespace dalle::layers

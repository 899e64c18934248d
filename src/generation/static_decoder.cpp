#include "dalle/generation/static_decoder.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <cmath>
#include <limits>
#include <optional>

#include "dalle/layers/heads.h"

namespace dalle::generation {
namespace {

using layers::AttentionKind;

at::ScalarType score_type(at::ScalarType compute) { return compute == at::kDouble ? at::kDouble : at::kFloat; }

// What joins the residual stream does so in f32 at least.
Tensor added(const Tensor& x, const Tensor& branch, const std::optional<layers::LayerNorm>& post) {
  const Tensor wide = branch.to(x.scalar_type());
  return x + (post ? post->forward(wide) : wide);
}

}  // namespace

StaticLinear::StaticLinear(const Tensor& weight, const Tensor& bias, at::ScalarType type, bool is_int8)
    : bias_O(bias.to(type)) {
  if (is_int8) {
    int8 = layers::quantise_outputs(weight);
  } else {
    weight_ON = weight.to(type);
  }
}

Tensor StaticLinear::forward(const Tensor& x) const {
  if (weight_ON.defined()) return at::linear(x, weight_ON, bias_O);
  auto sizes = x.sizes().vec();
  const Tensor out = layers::int8_product(x.reshape({-1, x.size(-1)}).contiguous(), int8);
  sizes.back() = out.size(1);
  return (out + bias_O).to(x.scalar_type()).view(sizes);
}

StaticLayer::StaticLayer(const layers::TransformerBlock& of, bool is_int8)
    : block(of),
      qkv(of.attn.in_proj_weight.tensor, of.attn.in_proj_bias.tensor, of.compute_dtype, is_int8),
      out(of.attn.out_proj.weight.tensor, of.attn.out_proj.bias->tensor, of.compute_dtype, is_int8),
      fc(of.mlp.c_fc.weight.tensor, of.mlp.c_fc.bias->tensor, of.compute_dtype, is_int8),
      proj(of.mlp.c_proj.weight.tensor, of.mlp.c_proj.bias->tensor, of.compute_dtype, is_int8) {}

Tensor StaticLayer::forward(const Tensor& x_RLD, const layers::AttendFunction& attend) const {
  const auto type = block.compute_dtype;
  const layers::Heads heads = layers::split_heads(qkv.forward(block.ln_1.forward(x_RLD, type)), block.attn.num_heads);
  const auto normed = [&](const std::optional<layers::LayerNorm>& norm, const Tensor& x) {
    return norm ? norm->forward(x, type) : x;
  };
  const Tensor from =
      attend(normed(block.attn.q_norm, heads.q_BHLK), normed(block.attn.k_norm, heads.k_BHLK), heads.v_BHLK);
  const Tensor x = added(x_RLD, out.forward(from.transpose(1, 2).reshape(x_RLD.sizes())), block.ln_1_post);
  const Tensor hidden = layers::activate(fc.forward(block.ln_2.forward(x, type)), block.mlp.activation);
  return added(x, proj.forward(hidden), block.ln_2_post);
}

StaticDecoder::StaticDecoder(const StaticModel& model, std::shared_ptr<const StaticText> text, int64_t batch)
    : model_(model),
      prior_(model.prior_),
      text_(std::move(text)),
      num_texts_(text_->captions_CT.size(0)),
      batch_(batch),
      caches_(model.layers_.size()) {
  const c10::NoGradGuard no_grad;
  const auto& config = prior_.config();
  const auto longs = at::TensorOptions(at::kLong).device(prior_.device());
  slot_1_ = at::zeros({1}, longs);
  tokens_B_ = at::zeros({batch}, longs);
  const Tensor slots = at::arange(config.image_context(), longs);
  grid_embedding_ID_ = prior_.image_row_embedding.forward(slots.div(config.grid_size, "floor")) +
                       prior_.image_column_embedding.forward(slots.remainder(config.grid_size));
  make_caches();
}

StaticDecoder::Tables StaticDecoder::tables_of(const CacheLayout& layout, const models::PriorConfig& config,
                                               const at::TensorOptions& scores) {
  const int64_t slots = config.image_context(), most = layout.max_visible();
  const Tensor position_I = at::empty({slots}, at::kLong), visible_In = at::zeros({slots, most}, at::kLong);
  const Tensor bias_In = at::full({slots, most}, -std::numeric_limits<float>::infinity());
  auto* position = position_I.mutable_data_ptr<int64_t>();
  for (int64_t slot = 0; slot < slots; ++slot) {
    position[slot] = layout.position(slot);
    int64_t* next = visible_In.mutable_data_ptr<int64_t>() + slot * most;
    float* bias = bias_In.mutable_data_ptr<float>() + slot * most;
    for (const CacheSpan& span : layout.visible(slot)) {
      for (int64_t i = 0; i < span.size; ++i) {
        *next++ = span.begin + i;
        *bias++ = 0;
      }
    }
  }
  const auto device = scores.device();
  return {position_I.to(device), visible_In.to(device), bias_In.to(scores)};
}

void StaticDecoder::make_caches() {
  const auto& config = prior_.config();
  for (size_t layer = 0; layer < caches_.size(); ++layer) {
    const AttentionKind kind = config.layer_kind(static_cast<int64_t>(layer));
    const CacheLayout layout(kind, config.grid_size, {config.conv_kernel, config.conv_mask_edge});
    const auto& [k, v] = text_->layers[layer];
    Tables& tables = tables_[static_cast<size_t>(kind)];
    if (!tables.position_I.defined())
      tables = tables_of(layout, config, k.options().dtype(score_type(k.scalar_type())));
    // Zeros, not empty: what is masked may still not be NaN for kernels that multiply by a weight of zero.
    const std::vector<int64_t> sizes{num_texts_ * batch_, k.size(1), layout.capacity(), k.size(3)};
    caches_[layer] = {k, v, at::zeros(sizes, k.options()), at::zeros(sizes, v.options())};
  }
}

// One softmax over the text's and the visible image slots' scores, in f32 at least.
Tensor StaticDecoder::attend(LayerCache& cache, const Slot& slot, const Tensor& q_RH1K, const Tensor& k_RH1K,
                             const Tensor& v_RH1K) const {
  cache.image_k_RHPK.index_copy_(2, slot.position_1, k_RH1K);
  cache.image_v_RHPK.index_copy_(2, slot.position_1, v_RH1K);
  const Tensor keys_RHnK = cache.image_k_RHPK.index_select(2, slot.visible_n);
  const Tensor values_RHnK = cache.image_v_RHPK.index_select(2, slot.visible_n);
  const int64_t heads = q_RH1K.size(1), head_dim = q_RH1K.size(3), text = cache.text_k_CHTK.size(2);
  // A caption's keys are read once for all its candidates.
  const auto by_caption = [&](const Tensor& x) { return x.reshape({num_texts_, batch_, heads, -1}).transpose(1, 2); };
  const auto by_row = [&](const Tensor& x) { return x.transpose(1, 2).reshape({num_texts_ * batch_, heads, 1, -1}); };
  const Tensor text_scores_RH1T = by_row(at::matmul(by_caption(q_RH1K), cache.text_k_CHTK.transpose(2, 3)));
  const Tensor image_scores_RH1n = at::matmul(q_RH1K, keys_RHnK.transpose(2, 3)) + slot.bias_n;
  const auto type = score_type(q_RH1K.scalar_type());
  const double scale = 1.0 / std::sqrt(static_cast<double>(head_dim));
  const Tensor scores = at::cat({text_scores_RH1T.to(type), image_scores_RH1n.to(type)}, 3) * scale;
  const Tensor weights = at::softmax(scores, 3).to(q_RH1K.scalar_type());
  const Tensor from_text = by_row(at::matmul(by_caption(weights.slice(3, 0, text)), cache.text_v_CHTK));
  return from_text + at::matmul(weights.slice(3, text), values_RHnK);
}

void StaticDecoder::run() {
  std::array<Slot, 4> slots;
  for (size_t kind = 0; kind < slots.size(); ++kind) {
    const Tables& tables = tables_[kind];
    if (!tables.position_I.defined()) continue;
    slots[kind] = {tables.position_I.index_select(0, slot_1_), tables.visible_In.index_select(0, slot_1_).squeeze(0),
                   tables.bias_In.index_select(0, slot_1_).squeeze(0)};
  }
  const Tensor start_1D = prior_.start_embedding.weight.tensor.slice(0, 1, 2);
  const Tensor tokens_BD = at::where(slot_1_.eq(0).unsqueeze(1), start_1D, prior_.image_embedding.forward(tokens_B_));
  const Tensor x_BD = tokens_BD + grid_embedding_ID_.index_select(0, slot_1_);
  Tensor x_R1D = x_BD.repeat({num_texts_, 1}).unsqueeze(1);
  for (size_t layer = 0; layer < caches_.size(); ++layer) {
    const auto kind = static_cast<size_t>(prior_.config().layer_kind(static_cast<int64_t>(layer)));
    x_R1D = model_.layers_[layer].forward(x_R1D, [&](const Tensor& q, const Tensor& k, const Tensor& v) {
      return attend(caches_[layer], slots[kind], q, k, v);
    });
  }
  const Tensor hidden = prior_.ln_final.forward(x_R1D);
  const Tensor logits = model_.head_.forward(hidden.to(prior_.compute().head_dtype)).to(hidden.scalar_type());
  logits_CBV_ = logits.view({num_texts_, batch_, -1});
}

Tensor StaticDecoder::step(int64_t slot, const Tensor& tokens_B) {
  const c10::NoGradGuard no_grad;
  TORCH_CHECK_VALUE(slot >= 0 && slot < prior_.config().image_context(), "[static decoder] image slot ", slot,
                    " does not fit a ", prior_.config().grid_size, " x ", prior_.config().grid_size, " grid");
  slot_1_.fill_(slot);
  if (slot > 0) tokens_B_.copy_(tokens_B);
  if (!slot_1_.is_cuda()) {
    run();
    return logits_CBV_;
  }
  if (graph_ == nullptr) graph_ = record_cuda_graph(slot_1_.device(), [this] { run(); });
  graph_->replay();
  return logits_CBV_;
}

void StaticDecoder::expand(int64_t batch) {
  const c10::NoGradGuard no_grad;
  TORCH_CHECK_VALUE(batch_ == 1 && batch > 0, "[static decoder] expected one candidate to make ", batch, " of, got ",
                    batch_);
  for (LayerCache& cache : caches_) {
    cache.image_k_RHPK = cache.image_k_RHPK.repeat_interleave(batch, 0);
    cache.image_v_RHPK = cache.image_v_RHPK.repeat_interleave(batch, 0);
  }
  tokens_B_ = tokens_B_.repeat({batch});
  batch_ = batch;
  graph_.reset();  // it is of other tensors
}

StaticModel::StaticModel(const models::Prior& prior, bool int8_weights)
    : prior_(prior),
      head_(prior.image_head_weights().weight_VD, prior.image_head_weights().bias_V, prior.compute().head_dtype,
            int8_weights) {
  const c10::NoGradGuard no_grad;
  for (const auto& block : prior.transformer.resblocks) layers_.emplace_back(*block, int8_weights);
}

std::shared_ptr<const StaticText> StaticModel::text_of(const Tensor& captions_CT) {
  const c10::NoGradGuard no_grad;
  if (recent_ && at::equal(recent_->captions_CT, captions_CT)) return recent_;
  auto text = std::make_shared<StaticText>();
  text->captions_CT = captions_CT.clone();
  Tensor x_CTD = prior_.embed_text(captions_CT);
  const Tensor causal = layers::causal_mask(prior_.config().text_context);
  const auto attend_text =
      layers::dense_attention(layers::mask_to_bias(causal, prior_.compute().dtype).to(x_CTD.device()));
  for (const StaticLayer& layer : layers_) {
    x_CTD = layer.forward(x_CTD, [&](const Tensor& q, const Tensor& k, const Tensor& v) {
      text->layers.emplace_back(k.contiguous(), v.contiguous());
      return attend_text(q, k, v);
    });
  }
  recent_ = text;
  return text;
}

std::unique_ptr<Decoder> StaticModel::start(const Tensor& captions_CT, int64_t batch) {
  return std::make_unique<StaticDecoder>(*this, text_of(captions_CT), batch);
}

int64_t StaticModel::candidate_bytes() const { return bytes_per_candidate(prior_.config(), prior_.compute().dtype); }

}  // namespace dalle::generation

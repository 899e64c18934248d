#include "dalle/models/prior.h"

#include <ATen/ATen.h>

#include <cmath>
#include <map>
#include <mutex>
#include <tuple>

#include "dalle/core/error.h"
#include "dalle/core/str.h"
#include "dalle/layers/cross_entropy.h"
#include "dalle/layers/fused_cross_entropy.h"
#include "dalle/layers/sparse_attention.h"

namespace dalle::models {

using layers::AttendFunction;
using layers::AttentionKind;

// A mask in one of the two forms, per (kind, length, device): masks depend on nothing else.
struct Prior::MaskCache {
  struct Mask {
    Tensor bias_LL;
    std::shared_ptr<const layers::BlockSparsePlan> plan;
  };
  std::mutex mutex;
  std::map<std::tuple<AttentionKind, int64_t, at::DeviceType, at::DeviceIndex>, Mask> masks;
};

namespace {

const PriorConfig& validated(const PriorConfig& config) {
  config.validate("prior");
  TORCH_CHECK_VALUE(config.text_vocab_size > 0 && config.image_vocab_size > 0 && config.grid_size > 0,
                    "[prior] vocabularies and grid size must be known when the model is built");
  return config;
}

layers::TransformerOptions transformer_options(const PriorConfig& config, const PriorCompute& compute) {
  return {.dim = config.dim,
          .num_heads = config.num_heads,
          .num_layers = config.num_layers,
          .mlp_ratio = config.mlp_ratio,
          .activation = config.activation,
          .init_std_scale = config.init_scale,
          .residual_init_scale = 1.0 / std::sqrt(2.0 * static_cast<double>(config.num_layers)),
          .sandwich_norm = config.sandwich_norm,
          .qk_norm = config.qk_norm,
          .compute_dtype = compute.dtype};
}

Tensor logits_of(const Tensor& hidden, const HeadWeights& head, at::ScalarType dtype) {
  return at::linear(hidden.to(dtype), head.weight_VD.to(dtype), head.bias_V.to(dtype)).to(hidden.scalar_type());
}

}  // namespace

AttentionKind PriorConfig::layer_kind(int64_t layer) const {
  switch (layer_order) {
    case LayerOrder::kPaper:
      return layers::paper_layer_kind(layer, num_layers);
    case LayerOrder::kFull:
      return AttentionKind::kFull;
    case LayerOrder::kList:
      return layer_kinds.at(static_cast<size_t>(layer));
  }
  return AttentionKind::kFull;
}

void PriorConfig::validate(const std::string& place) const {
  if (dim % num_heads != 0) {
    throw ConfigError(Problem{place, "dim divisible by num_heads", str("dim ", dim, ", num_heads ", num_heads), ""});
  }
  if (conv_kernel % 2 == 0) throw ConfigError(Problem{place, "an odd conv_kernel", str(conv_kernel), ""});
  const auto kinds = static_cast<int64_t>(layer_kinds.size());
  if (layer_order == LayerOrder::kList && kinds != num_layers) {
    throw ConfigError(
        Problem{place, str("one entry of layer_kinds for each of ", num_layers, " layers"), str(kinds), ""});
  }
  if (layer_order != LayerOrder::kList && kinds != 0) {
    throw ConfigError(
        Problem{place, "no layer_kinds unless layer_order is list", str(kinds, " entries"), "set layer_order: list"});
  }
}

OutputHead::OutputHead(Module& parent, std::string name, int64_t dim, int64_t targets, bool tied)
    : Module(parent, std::move(name)) {
  if (!tied) weight = &add_parameter("weight", {targets, dim}, layers::Init::zeros());
  bias = &add_parameter("bias", {targets}, layers::Init::zeros(), /*decays=*/false);
}

Prior::Prior(const PriorConfig& config, const PriorCompute& compute)
    : config_(validated(config)),
      compute_(compute),
      masks_(std::make_shared<MaskCache>()),
      text_embedding(*this, "text_embedding", config.text_vocab_size, config.dim, config.embedding_init_std),
      text_pad_embedding(*this, "text_pad_embedding", config.text_context, config.dim, config.embedding_init_std),
      text_position_embedding(*this, "text_position_embedding", config.text_context, config.dim,
                              config.embedding_init_std),
      image_embedding(*this, "image_embedding", config.image_vocab_size, config.dim, config.embedding_init_std),
      image_row_embedding(*this, "image_row_embedding", config.grid_size, config.dim, config.embedding_init_std),
      image_column_embedding(*this, "image_column_embedding", config.grid_size, config.dim, config.embedding_init_std),
      start_embedding(*this, "start_embedding", 2, config.dim, config.embedding_init_std),
      transformer(*this, "transformer", transformer_options(config, compute)),
      ln_final(*this, "ln_final", config.dim),
      text_head(*this, "text_head", config.dim, config.text_targets(), config.tied_heads),
      image_head(*this, "image_head", config.dim, config.image_vocab_size, config.tied_heads) {}

AttendFunction Prior::attend_of(AttentionKind kind, int64_t length, at::Device device,
                                const layers::AttentionDropout& dropout) const {
  const std::lock_guard lock(masks_->mutex);
  auto& cached = masks_->masks[{kind, length, device.type(), device.index()}];
  if (!cached.plan && !cached.bias_LL.defined()) {
    const Tensor mask = layers::attention_mask(kind, config_.layout(), {config_.conv_kernel, config_.conv_mask_edge});
    const Tensor part = mask.slice(0, 0, length).slice(1, 0, length);
    const bool by_blocks =
        !compute_.by_formula && device.is_cpu() && (compute_.dtype == at::kFloat || compute_.dtype == at::kBFloat16);
    if (by_blocks) {
      cached.plan = std::make_shared<layers::BlockSparsePlan>(
          layers::make_block_sparse_plan(part, layers::attention_order(kind, config_.layout(), length)));
    } else {
      cached.bias_LL = layers::mask_to_bias(part, compute_.dtype).contiguous().to(device);
    }
  }
  return cached.plan ? layers::sparse_attention(cached.plan, dropout)
                     : layers::dense_attention(cached.bias_LL, dropout);
}

Tensor Prior::embed_text(const Tensor& caption_BT) const {
  const int64_t batch = caption_BT.size(0), text = config_.text_context;
  TORCH_CHECK_VALUE(caption_BT.dim() == 2 && caption_BT.size(1) == text - 1, "[prior] expected captions [B, ", text - 1,
                    "], got ", caption_BT.sizes());
  // Slot k holds caption token k - 1, or the pad embedding of slot k.
  const Tensor is_pad = (caption_BT < 0).unsqueeze(-1);
  const Tensor pieces = text_embedding.forward(caption_BT.clamp_min(0));
  const Tensor pads = text_pad_embedding.weight.tensor.slice(0, 1).unsqueeze(0);
  const Tensor start = start_embedding.weight.tensor.slice(0, 0, 1).expand({batch, 1, config_.dim});
  return at::cat({start, at::where(is_pad, pads, pieces)}, 1) + text_position_embedding.weight.tensor;
}

Tensor Prior::embed_image_slots(const Tensor& tokens_Bn, int64_t first) const {
  const int64_t batch = tokens_Bn.size(0), count = tokens_Bn.size(1), grid = config_.grid_size;
  TORCH_CHECK_VALUE(first >= 0 && first + count <= config_.image_context(), "[prior] image slots ", first, " .. ",
                    first + count, " do not fit a ", grid, " x ", grid, " grid");
  Tensor tokens;
  if (first == 0) {
    const Tensor start = start_embedding.weight.tensor.slice(0, 1, 2).expand({batch, 1, config_.dim});
    tokens = at::cat({start, image_embedding.forward(tokens_Bn.slice(1, 1))}, 1);
  } else {
    tokens = image_embedding.forward(tokens_Bn);
  }
  const Tensor slots = at::arange(first, first + count, tokens_Bn.options());
  const Tensor rows = image_row_embedding.forward(slots.div(grid, "floor"));
  const Tensor columns = image_column_embedding.forward(slots.remainder(grid));
  return tokens + (rows + columns);
}

Tensor Prior::hidden(const Tensor& caption_BT, const Tensor& image_BI, layers::BlockRunner& runner,
                     const layers::Dropout& dropout) const {
  const int64_t slots = std::min(image_BI.size(1) + 1, config_.image_context());
  // Slot j holds token j - 1: shift right by one; the entry of slot 0 is ignored.
  const Tensor shifted =
      at::cat({at::zeros({image_BI.size(0), 1}, image_BI.options()), image_BI.slice(1, 0, slots - 1)}, 1);
  const Tensor x_BLD = dropout.apply(at::cat({embed_text(caption_BT), embed_image_slots(shifted, 0)}, 1), /*place=*/0);
  const int64_t length = x_BLD.size(1);
  const auto attend = [&](int64_t layer) {
    return attend_of(config_.layer_kind(layer), length, x_BLD.device(), layers::attention_dropout(dropout, layer));
  };
  return ln_final.forward(transformer.forward(x_BLD, attend, runner, /*first_layer=*/0, dropout));
}

Tensor Prior::text_logits(const Tensor& hidden) const {
  return logits_of(hidden, text_head_weights(), compute_.head_dtype);
}

Tensor Prior::image_logits(const Tensor& hidden) const {
  return logits_of(hidden, image_head_weights(), compute_.head_dtype);
}

HeadWeights Prior::text_head_weights() const {
  if (!config_.tied_heads) return {text_head.weight->tensor, text_head.bias->tensor};
  const Tensor pieces = text_embedding.weight.tensor;
  if (!config_.text_loss_on_pads) return {pieces, text_head.bias->tensor};
  return {at::cat({pieces, text_pad_embedding.weight.tensor}), text_head.bias->tensor};
}

HeadWeights Prior::image_head_weights() const {
  return {config_.tied_heads ? image_embedding.weight.tensor : image_head.weight->tensor, image_head.bias->tensor};
}

PriorOutput Prior::forward(const Tensor& caption_BT, const Tensor& image_BI, layers::BlockRunner& runner,
                           const layers::Dropout& dropout) const {
  const Tensor hidden_BLD = hidden(caption_BT, image_BI, runner, dropout);
  const int64_t text = config_.text_context;
  return {.text_logits_BTV = text_logits(hidden_BLD.slice(1, 0, text - 1)),
          .image_logits_BIV = image_logits(hidden_BLD.slice(1, text))};
}

PriorLoss Prior::loss(const Tensor& caption_BT, const Tensor& image_BI, const PriorLossScales& scales,
                      layers::BlockRunner& runner, const layers::Dropout& dropout) const {
  const Tensor hidden_BLD = hidden(caption_BT, image_BI, runner, dropout);
  const int64_t text = config_.text_context;
  const auto loss_of = [&](const Tensor& slots, const HeadWeights& head, const Tensor& targets, double scale) {
    if (compute_.by_formula) {
      return layers::cross_entropy_sum(logits_of(slots, head, compute_.head_dtype), targets) * scale;
    }
    return layers::linear_cross_entropy(slots.reshape({-1, config_.dim}), head.weight_VD, head.bias_V,
                                        targets.reshape({-1}), compute_.head_dtype, scale);
  };
  return {.text = loss_of(hidden_BLD.slice(1, 0, text - 1), text_head_weights(), text_targets(caption_BT), scales.text),
          .image = loss_of(hidden_BLD.slice(1, text), image_head_weights(), image_BI, scales.image)};
}

Tensor Prior::text_targets(const Tensor& caption_BT) const {
  if (!config_.text_loss_on_pads) return caption_BT;
  const Tensor slots = at::arange(1, config_.text_context, caption_BT.options());
  return at::where(caption_BT < 0, slots + config_.text_vocab_size, caption_BT);
}

}  // namespace dalle::models

// Stage 2: the autoregressive prior over one stream of text and image tokens (paper 2.2, appendix B).
//
// The stream has text_context text slots and grid_size^2 image slots. Text slot 0 holds a start-of-text embedding and
// text slot k holds caption token k - 1, so a caption has at most text_context - 1 tokens; slots past its end hold the
// learned pad embedding of their position, which is not masked out. Image slot 0 holds a start-of-image embedding and
// image slot j holds image token j - 1; the last image token is never fed. Slot k predicts the token of the next text
// slot, image slot j predicts image token j: no state sees its own target, and exactly grid_size^2 targets are images.
// An image slot is placed (row and column embedding, masks) at the cell it predicts.
//
// Suffixes: B batch, T text_context, I image_context, L = T + I, D dim, V vocabulary.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "dalle/layers/attention_mask.h"
#include "dalle/layers/dropout.h"
#include "dalle/layers/transformer.h"

namespace dalle::models {

enum class LayerOrder { kPaper, kFull, kList };

struct PriorConfig {
  int64_t text_context = 256;
  int64_t text_vocab_size = 16384;
  int64_t grid_size = 32;
  int64_t image_vocab_size = 8192;
  int64_t dim = 3968;
  int64_t num_heads = 62;
  int64_t num_layers = 64;
  int64_t mlp_ratio = 4;
  LayerOrder layer_order = LayerOrder::kPaper;
  std::vector<layers::AttentionKind> layer_kinds;
  int64_t conv_kernel = 11;
  layers::ConvMaskEdge conv_mask_edge = layers::ConvMaskEdge::kRaster;
  layers::Activation activation = layers::Activation::kGelu;
  bool sandwich_norm = false;
  bool qk_norm = false;
  bool tied_heads = false;
  bool text_loss_on_pads = false;
  double init_scale = 0.125;
  double embedding_init_std = 0.02;

  layers::SequenceLayout layout() const { return {text_context, grid_size}; }
  int64_t image_context() const { return grid_size * grid_size; }
  int64_t max_caption_tokens() const { return text_context - 1; }
  /// Text targets: the pieces, and one pad id per position where pads are counted.
  int64_t text_targets() const { return text_vocab_size + (text_loss_on_pads ? text_context : 0); }
  layers::AttentionKind layer_kind(int64_t layer) const;

  static void visit_fields(auto& self, auto&& field) {
    field("text_context", self.text_context, "text slots, the start-of-text slot included", {.min = 2});
    field("text_vocab_size", self.text_vocab_size, "pieces of the tokenizer", {.min = 0});
    field("grid_size", self.grid_size, "side of the grid of image tokens", {.min = 0});
    field("image_vocab_size", self.image_vocab_size, "codes of the dVAE", {.min = 0});
    field("dim", self.dim, "width of the residual stream", {.min = 2});
    field("num_heads", self.num_heads, "attention heads; must divide dim", {.min = 1});
    field("num_layers", self.num_layers, "transformer layers (two resblocks each)", {.min = 1});
    field("mlp_ratio", self.mlp_ratio, "hidden width of the MLP, as a multiple of dim", {.min = 1});
    field("layer_order", self.layer_order,
          "attention kinds of the layers: paper = row, column, row, row, ... and conv last; full = dense; list = "
          "layer_kinds");
    field("layer_kinds", self.layer_kinds, "one attention kind per layer, used with layer_order: list");
    field("conv_kernel", self.conv_kernel, "side of the convolutional mask; odd", {.min = 1});
    field("conv_mask_edge", self.conv_mask_edge, "what the convolutional mask does at the left and right edge");
    field("activation", self.activation, "non-linearity of the MLP");
    field("sandwich_norm", self.sandwich_norm,
          "a second layer norm at the end of each residual branch (CogView), for training in 16 bits");
    field("qk_norm", self.qk_norm, "layer norm over each head's queries and keys, for high learning rates");
    field("tied_heads", self.tied_heads,
          "the output heads use the token embeddings as their weights (paper: separate); the first loss is then not ln "
          "V, because embeddings do not start at zero");
    field("text_loss_on_pads", self.text_loss_on_pads,
          "count padded text positions in the text loss, with their own target ids");
    field("init_scale", self.init_scale,
          "matrices start as N(0, (init_scale / sqrt(fan_in))^2), output projections further divided by sqrt(2 "
          "num_layers)",
          {.min = 0});
    field("embedding_init_std", self.embedding_init_std, "standard deviation of embeddings at the start", {.min = 0});
  }
  void validate(const std::string& place) const;
};

struct PriorCompute {
  at::ScalarType dtype = at::kFloat;       // transformer layers
  at::ScalarType head_dtype = at::kFloat;  // the two output heads
  bool by_formula = false;  // dense masks and whole logits, op by op: what the fast ways are compared with
};

struct PriorOutput {
  Tensor text_logits_BTV;   // [B, T - 1, text_targets]: slot k predicts text slot k + 1
  Tensor image_logits_BIV;  // [B, I, image_vocab_size]
};

/// Sums of cross-entropies over the targets, each times a scale, as scalars in f32.
struct PriorLoss {
  Tensor text, image;
};
struct PriorLossScales {
  double text = 1, image = 1;
};

/// Target id for "no target" in text targets and the id of an empty caption slot.
inline constexpr int64_t kPadToken = -1;

/// An output head's weight [V, D] and bias [V], f32 masters, wherever the weight lives: what a loss that never makes the
/// logits as a whole needs.
struct HeadWeights {
  Tensor weight_VD;
  Tensor bias_V;
};

/// Parameters of an output head, zero at the start (Child et al. 2019: the first loss is exactly ln V). A tied head has
/// a bias only.
struct OutputHead : layers::Module {
  OutputHead(Module& parent, std::string name, int64_t dim, int64_t targets, bool tied);
  layers::Parameter* weight = nullptr;  // [targets, dim]; null where tied
  layers::Parameter* bias = nullptr;
};

class Prior : public layers::Module {
 public:
  explicit Prior(const PriorConfig& config, const PriorCompute& compute = {});

  /// caption_BT: int64 [B, T - 1] piece ids, kPadToken past the end. image_BI: int64 [B, n] with the first n <= I image
  /// tokens (training passes I or I - 1; the last is never fed). Heads run on their own slots only.
  PriorOutput forward(const Tensor& caption_BT, const Tensor& image_BI,
                      layers::BlockRunner& runner = layers::plain_runner(), const layers::Dropout& dropout = {}) const;
  /// The training loss without the logits as a whole (layers/fused_cross_entropy.h): sums over text_targets() and over all
  /// image tokens. captions and tokens as for forward(), all I tokens given.
  PriorLoss loss(const Tensor& caption_BT, const Tensor& image_BI, const PriorLossScales& scales,
                 layers::BlockRunner& runner = layers::plain_runner(), const layers::Dropout& dropout = {}) const;
  /// Residual stream after the layers and the final norm, [B, T + m, D] f32, for the first m = min(n + 1, I) image slots.
  Tensor hidden(const Tensor& caption_BT, const Tensor& image_BI, layers::BlockRunner& runner = layers::plain_runner(),
                const layers::Dropout& dropout = {}) const;

  /// Inputs of the text slots, [B, T, D], f32.
  Tensor embed_text(const Tensor& caption_BT) const;
  /// Input of image slots first .. first + n - 1. tokens_Bn: the tokens the slots hold, that is image token j - 1 for
  /// slot j; the entry of slot 0 is ignored (start of image). [B, n, D], f32.
  Tensor embed_image_slots(const Tensor& tokens_Bn, int64_t first) const;
  Tensor text_logits(const Tensor& hidden) const;   // f32
  Tensor image_logits(const Tensor& hidden) const;  // f32
  /// A tied text head over pads is the embeddings of the pieces, then those of the pads.
  HeadWeights text_head_weights() const;
  HeadWeights image_head_weights() const;

  /// Text targets [B, T - 1] of captions: the pieces, and at pads kPadToken or the pad's own id.
  Tensor text_targets(const Tensor& caption_BT) const;

  const PriorConfig& config() const { return config_; }
  const PriorCompute& compute() const { return compute_; }

 private:
  layers::AttendFunction attend_of(layers::AttentionKind kind, int64_t length, at::Device device,
                                   const layers::AttentionDropout& dropout) const;

  PriorConfig config_;
  PriorCompute compute_;
  struct MaskCache;
  std::shared_ptr<MaskCache> masks_;

 public:
  layers::Embedding text_embedding;           // [text_vocab_size, D]
  layers::Embedding text_pad_embedding;       // [T, D]: one per text position
  layers::Embedding text_position_embedding;  // [T, D]
  layers::Embedding image_embedding;          // [image_vocab_size, D]
  layers::Embedding image_row_embedding;      // [grid_size, D]
  layers::Embedding image_column_embedding;   // [grid_size, D]
  layers::Embedding start_embedding;          // [2, D]: start of text, start of image
  layers::Transformer transformer;
  layers::LayerNorm ln_final;
  OutputHead text_head;
  OutputHead image_head;
};

}  // namespace dalle::models

namespace dalle {
template <>
struct EnumNames<models::LayerOrder> {
  static constexpr EnumName<models::LayerOrder> values[] = {
      {models::LayerOrder::kPaper, "paper"}, {models::LayerOrder::kFull, "full"}, {models::LayerOrder::kList, "list"}};
};
}  // namespace dalle

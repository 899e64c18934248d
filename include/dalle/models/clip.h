// CLIP (Radford et al. 2021, openai/CLIP clip/model.py): a vision transformer and a text transformer trained with a
// symmetric contrastive loss; used to rerank samples. Parameter names are those of OpenAI's state dict.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "dalle/layers/packed_transformer.h"
#include "dalle/layers/transformer.h"
#include "dalle/text/text_tokenizer.h"

namespace dalle::models {

struct ClipConfig {
  int64_t image_size = 224;
  int64_t patch_size = 32;
  int64_t vision_dim = 768;
  int64_t vision_layers = 12;
  int64_t vision_heads = 12;
  int64_t text_context = 77;
  int64_t text_vocab_size = 49408;
  int64_t text_dim = 512;
  int64_t text_layers = 12;
  int64_t text_heads = 8;
  int64_t embed_dim = 512;
  layers::Activation activation = layers::Activation::kQuickGelu;
  text::TokenizerKind tokenizer_kind = text::TokenizerKind::kSentencePiece;
  // What pixels in [0, 1] are normalised by, for red, green and blue; these are OpenAI's (clip/clip.py).
  std::vector<double> pixel_mean = {0.48145466, 0.4578275, 0.40821073};
  std::vector<double> pixel_std = {0.26862954, 0.26130258, 0.27577711};

  /// Pieces of a caption between start and end of text.
  int64_t max_caption_tokens() const { return text_context - 2; }

  static void visit_fields(auto& self, auto&& field) {
    field("image_size", self.image_size, "side of the square pictures", {.min = 1, .unit = "pixels"});
    field("patch_size", self.patch_size, "side of a patch; must divide image_size", {.min = 1, .unit = "pixels"});
    field("vision_dim", self.vision_dim, "width of the image tower", {.min = 1});
    field("vision_layers", self.vision_layers, "layers of the image tower", {.min = 1});
    field("vision_heads", self.vision_heads, "heads of the image tower", {.min = 1});
    field("text_context", self.text_context, "text positions, start and end of text included", {.min = 3});
    field("text_vocab_size", self.text_vocab_size, "text ids, start (last but one) and end of text (last) included",
          {.min = 0});
    field("text_dim", self.text_dim, "width of the text tower", {.min = 1});
    field("text_layers", self.text_layers, "layers of the text tower", {.min = 1});
    field("text_heads", self.text_heads, "heads of the text tower", {.min = 1});
    field("embed_dim", self.embed_dim, "size of the common feature space", {.min = 1});
    field("activation", self.activation, "non-linearity of the MLPs");
    field("tokenizer_kind", self.tokenizer_kind,
          "how captions are read: by a model of train-tokenizer, or by CLIP's own vocabulary");
    field("pixel_mean", self.pixel_mean, "means of red, green and blue in [0, 1] that are subtracted from pixels");
    field("pixel_std", self.pixel_std, "deviations of red, green and blue that pixels are then divided by",
          {.min = 1e-6});
  }
  void validate(const std::string& place) const;
};

class Clip : public layers::Module {
 public:
  explicit Clip(const ClipConfig& config, at::ScalarType compute_dtype = at::kFloat);

  /// Pixels [B, 3, S, S] in [0, 1] less pixel_mean, by pixel_std: what the image tower sees.
  Tensor normalise(const Tensor& pixels_B3HW) const;
  /// Pixels [B, 3, S, S] in [0, 1] -> unit features [B, E], f32.
  Tensor encode_image(const Tensor& pixels_B3HW, layers::BlockRunner& runner = layers::plain_runner()) const;
  /// Ids [B, text_context] as made by text ids: start, pieces, end, then 0 -> unit features [B, E], f32. The feature is
  /// taken at the end-of-text slot, found as the largest id of the row.
  Tensor encode_text(const Tensor& ids_BT, layers::BlockRunner& runner = layers::plain_runner()) const;
  /// Packs the weights for inference, where they and the processor allow it (bf16 on a CPU): encode_image() and encode_text()
  /// without gradients then run on layers::PackedTransformer. Weights must not change afterwards.
  void pack_for_inference();
  /// exp(logit_scale), at most 100.
  Tensor scale() const;

  int64_t start_of_text() const { return config_.text_vocab_size - 2; }
  int64_t end_of_text() const { return config_.text_vocab_size - 1; }
  const ClipConfig& config() const { return config_; }
  at::ScalarType compute_dtype() const { return compute_dtype_; }

 private:
  struct Packed {
    layers::PackedLinear patches;
    layers::PackedTransformer visual, text;
  };
  bool uses_packed(const Tensor& input) const;
  Tensor packed_image_features(const Tensor& pixels_B3HW) const;
  Tensor packed_text_features(const Tensor& ids_BL, const Tensor& end_B) const;
  Tensor image_input(const Tensor& patches_BPD) const;
  Tensor text_input(const Tensor& ids_BL) const;

  ClipConfig config_;
  at::ScalarType compute_dtype_;
  std::optional<Packed> packed_;

 public:
  layers::Parameter& positional_embedding;  // [text_context, text_dim]
  layers::Parameter& text_projection;       // [text_dim, embed_dim]
  layers::Parameter& logit_scale;           // scalar, ln(1/0.07)
  // The image tower.
  layers::Module visual;
  layers::Parameter& class_embedding;              // visual.class_embedding
  layers::Parameter& visual_positional_embedding;  // visual.positional_embedding
  layers::Parameter& visual_projection;            // visual.proj
  layers::Module conv1;                            // visual.conv1: patch embedding without bias
  layers::Parameter& conv1_weight;
  layers::LayerNorm ln_pre, ln_post;
  layers::Transformer visual_transformer;
  // The text tower.
  layers::Transformer transformer;
  layers::Embedding token_embedding;
  layers::LayerNorm ln_final;
};

/// Symmetric cross-entropy over the batch: mean of image-to-text and text-to-image, labels on the diagonal. Unit features
/// [B, E]; scalar f32.
Tensor contrastive_loss(const Tensor& image_features, const Tensor& text_features, const Tensor& scale);

/// Start, pieces (truncated so that the end stays), end, zeros: one row of encode_text's ids.
std::vector<int64_t> clip_text_ids(const ClipConfig& config, const std::vector<int64_t>& pieces);

}  // namespace dalle::models

#include "dalle/models/clip.h"

#include <ATen/ATen.h>

#include <cmath>

#include "dalle/core/device.h"
#include "dalle/core/error.h"
#include "dalle/core/str.h"
#include "dalle/layers/attention_mask.h"
#include "dalle/layers/cross_entropy.h"

namespace dalle::models {
namespace {

// The normalisation of OpenAI's CLIP (clip/clip.py).
constexpr float kMean[] = {0.48145466f, 0.4578275f, 0.40821073f};
constexpr float kStd[] = {0.26862954f, 0.26130258f, 0.27577711f};

const ClipConfig& validated(const ClipConfig& config) {
  config.validate("clip");
  TORCH_CHECK_VALUE(config.text_vocab_size > 2, "[clip] the text vocabulary must be known when the model is built");
  return config;
}

// After clip/model.py: matrices N(0, 1/fan_in), output projections divided by sqrt(2 layers). Theirs counts the width as
// the fan-in of both MLP matrices, which makes c_fc smaller and c_proj larger by constant factors.
layers::TransformerOptions tower(int64_t dim, int64_t heads, int64_t depth, layers::Activation activation,
                                 at::ScalarType dtype) {
  return {.dim = dim,
          .num_heads = heads,
          .num_layers = depth,
          .activation = activation,
          .residual_init_scale = 1.0 / std::sqrt(2.0 * static_cast<double>(depth)),
          .compute_dtype = dtype};
}

double inverse_root(int64_t dim) { return 1.0 / std::sqrt(static_cast<double>(dim)); }

Tensor unit(const Tensor& features) { return features / features.norm(2, -1, /*keepdim=*/true); }

}  // namespace

void ClipConfig::validate(const std::string& place) const {
  if (image_size % patch_size != 0) {
    throw ConfigError(Problem{place, "image_size divisible by patch_size", str(image_size, " and ", patch_size), ""});
  }
  if (vision_dim % vision_heads != 0 || text_dim % text_heads != 0) {
    throw ConfigError(Problem{place, "dims divisible by their heads",
                              str(vision_dim, "/", vision_heads, " and ", text_dim, "/", text_heads), ""});
  }
}

Clip::Clip(const ClipConfig& config, at::ScalarType compute_dtype)
    : config_(validated(config)),
      compute_dtype_(compute_dtype),
      positional_embedding(add_parameter("positional_embedding", {config.text_context, config.text_dim},
                                         layers::Init::normal(0.01), /*decays=*/false)),
      text_projection(add_parameter("text_projection", {config.text_dim, config.embed_dim},
                                    layers::Init::normal(inverse_root(config.text_dim)))),
      logit_scale(add_parameter("logit_scale", {}, layers::Init::constant(std::log(1 / 0.07)), /*decays=*/false)),
      visual(*this, "visual"),
      class_embedding(visual.add_parameter("class_embedding", {config.vision_dim},
                                           layers::Init::normal(inverse_root(config.vision_dim)), /*decays=*/false)),
      visual_positional_embedding(visual.add_parameter(
          "positional_embedding",
          {(config.image_size / config.patch_size) * (config.image_size / config.patch_size) + 1, config.vision_dim},
          layers::Init::normal(inverse_root(config.vision_dim)), /*decays=*/false)),
      visual_projection(visual.add_parameter("proj", {config.vision_dim, config.embed_dim},
                                             layers::Init::normal(inverse_root(config.vision_dim)))),
      conv1(visual, "conv1"),
      conv1_weight(conv1.add_parameter("weight", {config.vision_dim, 3, config.patch_size, config.patch_size},
                                       layers::Init::normal(inverse_root(3 * config.patch_size * config.patch_size)))),
      ln_pre(visual, "ln_pre", config.vision_dim),
      ln_post(visual, "ln_post", config.vision_dim),
      visual_transformer(
          visual, "transformer",
          tower(config.vision_dim, config.vision_heads, config.vision_layers, config.activation, compute_dtype)),
      transformer(*this, "transformer",
                  tower(config.text_dim, config.text_heads, config.text_layers, config.activation, compute_dtype)),
      token_embedding(*this, "token_embedding", config.text_vocab_size, config.text_dim, 0.02),
      ln_final(*this, "ln_final", config.text_dim) {}

Tensor Clip::encode_image(const Tensor& pixels_B3HW, layers::BlockRunner& runner) const {
  const int64_t size = config_.image_size, batch = pixels_B3HW.size(0);
  TORCH_CHECK_VALUE(
      pixels_B3HW.dim() == 4 && pixels_B3HW.size(1) == 3 && pixels_B3HW.size(2) == size && pixels_B3HW.size(3) == size,
      "[clip] expected pixels [B, 3, ", size, ", ", size, "], got ", pixels_B3HW.sizes());
  const Tensor mean = to_device(at::tensor(at::ArrayRef<float>(kMean)).view({1, 3, 1, 1}), pixels_B3HW.device());
  const Tensor std = to_device(at::tensor(at::ArrayRef<float>(kStd)).view({1, 3, 1, 1}), pixels_B3HW.device());
  const Tensor normalised = (pixels_B3HW - mean) / std;
  const Tensor patches_BDHW =
      at::conv2d(normalised.to(compute_dtype_), conv1_weight.tensor.to(compute_dtype_), {}, config_.patch_size);
  const Tensor patches_BPD = patches_BDHW.flatten(2).transpose(1, 2).to(class_embedding.tensor.scalar_type());
  const Tensor start = class_embedding.tensor.expand({batch, 1, config_.vision_dim});
  const Tensor x_BLD = ln_pre.forward(at::cat({start, patches_BPD}, 1) + visual_positional_embedding.tensor);
  const auto attend = layers::dense_attention({});
  const Tensor out = visual_transformer.forward(
      x_BLD, [&](int64_t) { return attend; }, runner);
  return unit(at::matmul(ln_post.forward(out.select(1, 0)), visual_projection.tensor));
}

Tensor Clip::encode_text(const Tensor& ids_BT, layers::BlockRunner& runner) const {
  const int64_t length = config_.text_context;
  TORCH_CHECK_VALUE(ids_BT.dim() == 2 && ids_BT.size(1) == length, "[clip] expected text ids [B, ", length, "], got ",
                    ids_BT.sizes());
  const Tensor x_BLD = token_embedding.forward(ids_BT) + positional_embedding.tensor;
  const Tensor bias = to_device(layers::mask_to_bias(layers::causal_mask(length), compute_dtype_), ids_BT.device());
  const auto attend = layers::dense_attention(bias);
  const Tensor out = ln_final.forward(transformer.forward(
      x_BLD, [&](int64_t) { return attend; }, runner, /*first_layer=*/config_.vision_layers));
  const Tensor rows = at::arange(ids_BT.size(0), ids_BT.options());
  const Tensor at_end = out.index({rows, ids_BT.argmax(-1)});
  return unit(at::matmul(at_end, text_projection.tensor));
}

Tensor Clip::scale() const { return logit_scale.tensor.exp().clamp_max(100); }

Tensor contrastive_loss(const Tensor& image_features, const Tensor& text_features, const Tensor& scale) {
  const Tensor logits = scale * at::matmul(image_features, text_features.t());
  const Tensor labels = at::arange(logits.size(0), logits.options().dtype(at::kLong));
  const double count = static_cast<double>(logits.size(0));
  return (layers::cross_entropy_sum(logits, labels) + layers::cross_entropy_sum(logits.t(), labels)) / (2 * count);
}

std::vector<int64_t> clip_text_ids(const ClipConfig& config, const std::vector<int64_t>& pieces) {
  const auto length = static_cast<size_t>(config.text_context);
  std::vector<int64_t> ids(length, 0);
  const size_t count = std::min(pieces.size(), length - 2);
  ids[0] = config.text_vocab_size - 2;
  std::copy_n(pieces.begin(), count, ids.begin() + 1);
  ids[count + 1] = config.text_vocab_size - 1;
  return ids;
}

}  // namespace dalle::models

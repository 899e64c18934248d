#include "dalle/models/clip.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <cmath>
#include <memory>
#include <numeric>

#include "dalle/core/device.h"
#include "dalle/core/error.h"
#include "dalle/core/str.h"
#include "dalle/layers/attention_mask.h"
#include "dalle/layers/cross_entropy.h"

namespace dalle::models {
namespace {

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

Tensor per_channel(const std::vector<double>& values, at::Device device) {
  return to_device(at::tensor(values, at::kFloat).view({1, 3, 1, 1}), device);
}

std::shared_ptr<const layers::BlockSparsePlan> dense_plan(const Tensor& visible_LL) {
  std::vector<int64_t> order(static_cast<size_t>(visible_LL.size(0)));
  std::iota(order.begin(), order.end(), int64_t{0});
  return std::make_shared<layers::BlockSparsePlan>(layers::make_block_sparse_plan(visible_LL, std::move(order)));
}

double inverse_root(int64_t dim) { return 1.0 / std::sqrt(static_cast<double>(dim)); }

Tensor unit(const Tensor& features) { return features / features.norm(2, -1, /*keepdim=*/true); }

}  // namespace

void ClipConfig::validate(const std::string& place) const {
  if (image_size % patch_size != 0) {
    throw ConfigError(Problem{place, "image_size divisible by patch_size", str(image_size, " and ", patch_size), ""});
  }
  if (pixel_mean.size() != 3 || pixel_std.size() != 3) {
    throw ConfigError(Problem{place, "three numbers in pixel_mean and in pixel_std",
                              str(pixel_mean.size(), " and ", pixel_std.size()), ""});
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

Tensor Clip::normalise(const Tensor& pixels_B3HW) const {
  const auto device = pixels_B3HW.device();
  return (pixels_B3HW - per_channel(config_.pixel_mean, device)) / per_channel(config_.pixel_std, device);
}

Tensor Clip::image_input(const Tensor& patches_BPD) const {
  const Tensor start = class_embedding.tensor.expand({patches_BPD.size(0), 1, config_.vision_dim});
  return ln_pre.forward(at::cat({start, patches_BPD}, 1) + visual_positional_embedding.tensor);
}

Tensor Clip::text_input(const Tensor& ids_BL) const {
  return token_embedding.forward(ids_BL) + positional_embedding.tensor.slice(0, 0, ids_BL.size(1));
}

Tensor Clip::encode_image(const Tensor& pixels_B3HW, layers::BlockRunner& runner) const {
  const int64_t size = config_.image_size;
  TORCH_CHECK_VALUE(
      pixels_B3HW.dim() == 4 && pixels_B3HW.size(1) == 3 && pixels_B3HW.size(2) == size && pixels_B3HW.size(3) == size,
      "[clip] expected pixels [B, 3, ", size, ", ", size, "], got ", pixels_B3HW.sizes());
  if (uses_packed(pixels_B3HW)) return packed_image_features(pixels_B3HW);
  const Tensor patches_BDHW = at::conv2d(normalise(pixels_B3HW).to(compute_dtype_),
                                         conv1_weight.tensor.to(compute_dtype_), {}, config_.patch_size);
  const Tensor patches_BPD = patches_BDHW.flatten(2).transpose(1, 2).to(class_embedding.tensor.scalar_type());
  const auto attend = layers::dense_attention({});
  const Tensor out = visual_transformer.forward(
      image_input(patches_BPD), [&](int64_t) { return attend; }, runner);
  return unit(at::matmul(ln_post.forward(out.select(1, 0)), visual_projection.tensor));
}

Tensor Clip::encode_text(const Tensor& ids_BT, layers::BlockRunner& runner) const {
  TORCH_CHECK_VALUE(ids_BT.dim() == 2 && ids_BT.size(1) == config_.text_context, "[clip] expected text ids [B, ",
                    config_.text_context, "], got ", ids_BT.sizes());
  const Tensor end_B = ids_BT.argmax(-1);
  // Attention is causal, so nothing after the last end is needed. A GPU would have to be waited for to know that.
  const int64_t length = ids_BT.is_cpu() ? end_B.max().item<int64_t>() + 1 : config_.text_context;
  const Tensor ids_BL = ids_BT.slice(1, 0, length);
  if (uses_packed(ids_BT)) return packed_text_features(ids_BL, end_B);
  const Tensor bias = to_device(layers::mask_to_bias(layers::causal_mask(length), compute_dtype_), ids_BT.device());
  const auto attend = layers::dense_attention(bias);
  const Tensor out = ln_final.forward(transformer.forward(
      text_input(ids_BL), [&](int64_t) { return attend; }, runner, /*first_layer=*/config_.vision_layers));
  const Tensor rows = at::arange(ids_BT.size(0), ids_BT.options());
  const Tensor at_end = out.index({rows, end_B});
  return unit(at::matmul(at_end, text_projection.tensor));
}

void Clip::pack_for_inference() {
  const bool fits = compute_dtype_ == at::kBFloat16 && device().is_cpu() && config_.vision_dim % 16 == 0 &&
                    layers::PackedTransformer::fits(visual_transformer) && layers::PackedTransformer::fits(transformer);
  if (!fits) return;
  // Pixels are normalised by the weights: w (x - mean) / std = (w / std) x - (w / std) mean, with w / std as it is rounded.
  const c10::NoGradGuard no_grad;
  const Tensor scaled =
      (conv1_weight.tensor / per_channel(config_.pixel_std, device())).to(at::kBFloat16).to(at::kFloat);
  const Tensor bias = -(scaled * per_channel(config_.pixel_mean, device())).sum({1, 2, 3});
  packed_.emplace(Packed{{scaled.flatten(1), bias},
                         layers::PackedTransformer(visual_transformer),
                         layers::PackedTransformer(transformer)});
}

bool Clip::uses_packed(const Tensor& input) const { return packed_ && input.is_cpu() && !c10::GradMode::is_enabled(); }

Tensor Clip::packed_image_features(const Tensor& pixels_B3HW) const {
  const int64_t batch = pixels_B3HW.size(0), patch = config_.patch_size, grid = config_.image_size / patch;
  const Tensor patches_NI = pixels_B3HW.view({batch, 3, grid, patch, grid, patch})
                                .permute({0, 2, 4, 1, 3, 5})
                                .to(at::kBFloat16, false, false, at::MemoryFormat::Contiguous)
                                .view({batch * grid * grid, 3 * patch * patch});
  const Tensor x_BLD =
      image_input(packed_->patches.forward(patches_NI, at::kFloat).view({batch, grid * grid, config_.vision_dim}));
  const int64_t length = x_BLD.size(1);
  const Tensor first = at::zeros({batch}, at::kLong);
  const Tensor out = packed_->visual.forward(x_BLD, dense_plan(at::ones({length, length}, at::kBool)), first,
                                             at::full({batch}, length - 1, at::kLong));
  return unit(at::matmul(ln_post.forward(out), visual_projection.tensor));
}

Tensor Clip::packed_text_features(const Tensor& ids_BL, const Tensor& end_B) const {
  const auto plan = dense_plan(layers::causal_mask(ids_BL.size(1)));
  const Tensor out = packed_->text.forward(text_input(ids_BL), plan, end_B, end_B);
  return unit(at::matmul(ln_final.forward(out), text_projection.tensor));
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

// Small priors with generic weights (no zero heads, no tiny scales) in f32 or f64, for every attention kind and the paper's
// order, for the tests of cached decoding.
#pragma once

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include <memory>
#include <string>
#include <vector>

#include "dalle/core/random.h"
#include "dalle/models/prior.h"

namespace dalle::generation {

/// One thread while it lives: f32 kernels may round differently on several.
struct OneThread {
  OneThread() { at::set_num_threads(1); }
  ~OneThread() { at::set_num_threads(before); }
  int before = at::get_num_threads();
};

struct PriorCase {
  std::string name;
  std::vector<layers::AttentionKind> kinds;  // empty: the paper's order of 6 layers
  layers::ConvMaskEdge edge = layers::ConvMaskEdge::kRaster;
  bool sandwich_norm = false, qk_norm = false, tied_heads = false;
  layers::Activation activation = layers::Activation::kGelu;
};

inline std::vector<PriorCase> prior_cases() {
  using enum layers::AttentionKind;
  using layers::ConvMaskEdge;
  return {{"full", {kFull}},
          {"row", {kRow}},
          {"column", {kColumn}},
          {"conv raster", {kConv}},
          {"conv clamp", {kConv}, ConvMaskEdge::kClamp},
          {"conv cyclic", {kConv}, ConvMaskEdge::kCyclic},
          {"column column", {kColumn, kColumn}},
          {"paper", {}}};
}

/// The paper's order with each option of the model.
inline std::vector<PriorCase> option_cases() {
  return {{.name = "sandwich norm", .sandwich_norm = true},
          {.name = "qk norm", .qk_norm = true},
          {.name = "tied heads", .tied_heads = true},
          {.name = "quick gelu", .activation = layers::Activation::kQuickGelu}};
}

inline std::unique_ptr<models::Prior> random_prior(const models::PriorConfig& config, at::ScalarType dtype,
                                                   double scale = 0.4) {
  auto prior = std::make_unique<models::Prior>(config, models::PriorCompute{.dtype = dtype, .head_dtype = dtype});
  prior->materialize(at::kCPU);
  const c10::NoGradGuard no_grad;
  for (const auto& [name, parameter] : prior->named_parameters()) {
    const bool gain = parameter->tensor.dim() == 1 && name.ends_with("weight");
    const Tensor noise = normal(random_key(1, Purpose::kInit, stable_hash(name)), parameter->tensor.numel());
    parameter->tensor.copy_(noise.view(parameter->tensor.sizes()) * scale + (gain ? 1.0 : 0.0));
    if (dtype == at::kDouble) parameter->tensor = parameter->tensor.to(at::kDouble);
  }
  return prior;
}

/// text_context 4, conv kernel 5 (so grids of 4 and less are smaller than it), 7 codes.
inline std::unique_ptr<models::Prior> random_prior(const PriorCase& c, int64_t grid_size, at::ScalarType dtype) {
  models::PriorConfig config{.text_context = 4,
                             .text_vocab_size = 9,
                             .grid_size = grid_size,
                             .image_vocab_size = 7,
                             .dim = 12,
                             .num_heads = 2,
                             .num_layers = 6,
                             .conv_kernel = 5,
                             .conv_mask_edge = c.edge,
                             .activation = c.activation,
                             .sandwich_norm = c.sandwich_norm,
                             .qk_norm = c.qk_norm,
                             .tied_heads = c.tied_heads};
  if (!c.kinds.empty()) {
    config.num_layers = static_cast<int64_t>(c.kinds.size());
    config.layer_order = models::LayerOrder::kList;
    config.layer_kinds = c.kinds;
  }
  return random_prior(config, dtype);
}

/// A caption with a pad at its end, int64 [T - 1].
inline Tensor some_caption() { return at::tensor(std::vector<int64_t>{5, 2, models::kPadToken}, at::kLong); }

/// int64 [batch, I], other tokens for other seeds.
inline Tensor random_images(const models::Prior& prior, int64_t batch, uint64_t seed = 0) {
  const models::PriorConfig& config = prior.config();
  RandomStream stream(random_key(seed, Purpose::kEvaluation));
  Tensor tokens = at::empty({batch, config.image_context()}, at::kLong);
  int64_t* next = tokens.mutable_data_ptr<int64_t>();
  for (int64_t i = 0; i < tokens.numel(); ++i) next[i] = stream.integer(0, config.image_vocab_size - 1);
  return tokens;
}

/// bool [I, I]: whether the logits of image slot i may depend on what image slot j holds.
inline Tensor image_reach(const models::Prior& prior) {
  const models::PriorConfig& config = prior.config();
  Tensor reach = at::eye(config.layout().length(), at::kFloat);
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    const Tensor mask =
        layers::attention_mask(config.layer_kind(layer), config.layout(), {config.conv_kernel, config.conv_mask_edge});
    reach = at::matmul(mask.to(at::kFloat), reach).gt(0).to(at::kFloat);
  }
  return reach.to(at::kBool).slice(0, config.text_context).slice(1, config.text_context);
}

/// Logits of all slots by one pass over the whole sequence, [B, I, V], with the image tokens given.
inline Tensor in_full(const models::Prior& prior, const Tensor& caption_T, const Tensor& images_BI) {
  const c10::NoGradGuard no_grad;
  return prior.forward(caption_T.unsqueeze(0).expand({images_BI.size(0), -1}), images_BI).image_logits_BIV;
}

}  // namespace dalle::generation

// A small prior with generic weights (no zero heads, no tiny scales), so that every dependence shows in f32.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <memory>
#include <utility>
#include <vector>

#include "dalle/models/prior.h"

namespace dalle::testing {

/// One layer per kind, text_context 4, 4 x 4 grid, conv kernel 5.
inline std::unique_ptr<models::Prior> small_prior(std::vector<layers::AttentionKind> kinds,
                                                  layers::ConvMaskEdge edge = layers::ConvMaskEdge::kRaster,
                                                  const models::PriorCompute& compute = {}) {
  const auto num_layers = static_cast<int64_t>(kinds.size());
  auto prior = std::make_unique<models::Prior>(models::PriorConfig{.text_context = 4,
                                                                   .text_vocab_size = 9,
                                                                   .grid_size = 4,
                                                                   .image_vocab_size = 7,
                                                                   .dim = 12,
                                                                   .num_heads = 2,
                                                                   .num_layers = num_layers,
                                                                   .layer_order = models::LayerOrder::kList,
                                                                   .layer_kinds = std::move(kinds),
                                                                   .conv_kernel = 5,
                                                                   .conv_mask_edge = edge},
                                               compute);
  prior->materialize(at::kCPU);
  at::manual_seed(1);
  const at::NoGradGuard no_grad;
  for (const auto& [name, parameter] : prior->named_parameters()) {
    const bool gain = parameter->tensor.dim() == 1 && name.ends_with("weight");
    parameter->tensor.copy_(at::randn(parameter->tensor.sizes()) * 0.4 + (gain ? 1.0 : 0.0));
  }
  return prior;
}

/// Captions without pads but for the last slot of the last sample, and images: int64 [B, T - 1] and [B, I].
inline std::pair<Tensor, Tensor> random_tokens(const models::Prior& prior, int64_t batch) {
  at::manual_seed(2);
  const models::PriorConfig& config = prior.config();
  Tensor caption = at::randint(config.text_vocab_size, {batch, config.max_caption_tokens()}, at::kLong);
  caption[batch - 1][config.max_caption_tokens() - 1].fill_(models::kPadToken);
  return {caption, at::randint(config.image_vocab_size, {batch, config.image_context()}, at::kLong)};
}

}  // namespace dalle::testing

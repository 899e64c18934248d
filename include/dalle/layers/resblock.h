// The dVAE's bottleneck resblock as one differentiable step (openai/DALL-E dall_e/encoder.py, decoder.py).
#pragma once

#include <array>

#include "dalle/layers/convolution.h"

namespace dalle::layers {

struct ResblockOptions {
  double gain = 1;                            // of the residual path
  at::ScalarType compute_dtype = at::kFloat;  // of the four convolutions and their activations
  /// The block's input is x enlarged by 2 (nearest neighbour). Then convs[0] must be 1x1: it and `id` commute with the
  /// enlargement and are computed at x's size, with a quarter of the work and the same result.
  bool enlarges = false;
};

/// id(x) + gain * conv_4(relu(conv_3(relu(conv_2(relu(conv_1(relu(x)))))))), where id is a 1x1 convolution, or the
/// identity for undefined id.w. The result has x's type: where that is f32 and the compute type bf16, the stream of
/// residuals is f32, and so is id. Weights are f32 masters (f64 for f64). Forward keeps the four ReLU outputs (and x, where
/// id is a convolution, in the compute type) for the backward pass. Differentiable in x and all weights.
Tensor resblock(const Tensor& x_BCHW, const ConvWeights& id, const std::array<ConvWeights, 4>& convs,
                const ResblockOptions& options);

}  // namespace dalle::layers

// The discrete latent of the dVAE: Gumbel-softmax relaxation and KL to the uniform prior (paper 2.1, A.2).
// Suffixes: B batch, V vocabulary, H and W grid.
#pragma once

#include "dalle/core/tensor.h"

namespace dalle::layers {

/// softmax((logits + gumbel) / temperature) over V, soft in the forward and the backward pass (no straight-through).
/// logits_BVHW and gumbel_BVHW are f32.
Tensor gumbel_softmax(const Tensor& logits_BVHW, const Tensor& gumbel_BVHW, double temperature);

/// KL(softmax(logits) || uniform) in nats per position: [B, H, W]. Uses the raw logits, not divided by the temperature.
/// 0 for uniform logits, ln V for a one-hot code.
Tensor kl_to_uniform(const Tensor& logits_BVHW);

/// argmax codes [B, H, W], int64.
Tensor argmax_codes(const Tensor& logits_BVHW);

/// f32 one-hot [B, V, H, W] of codes [B, H, W].
Tensor one_hot_codes(const Tensor& codes_BHW, int64_t vocab_size);

}  // namespace dalle::layers

// The discrete latent of the dVAE: Gumbel-softmax relaxation and KL to the uniform prior (paper 2.1, A.2).
// Suffixes: B batch, V vocabulary, H and W grid, N = B H W.
#pragma once

#include <span>

#include "dalle/core/random.h"
#include "dalle/core/tensor.h"

namespace dalle::layers {

struct Relaxation {
  Tensor codes_BVHW;  // in the logits' type, codes innermost in memory (channels last)
  Tensor kl_BHW;      // nats per position, f32 (f64 for f64 logits)
};

/// The whole relaxation in one pass over the logits, and its gradient in another: log-softmax, Gumbel noise, softmax at
/// `temperature`, and the KL to uniform of softmax(logits). Computed in f32 for f32 and bf16 logits (CUDA: f16 too), and
/// op by op for f64; between the passes only the logits and the codes are kept. The noise of picture b is stream keys[b], element
/// (h W + w) V + v for code v, whichever batch the picture is in. With `straight_through` the forward result is the
/// one-hot code of the noisy argmax and the gradient that of the soft one (a baseline: the paper's is soft in both).
/// CPU and CUDA. Throws c10::ValueError for other shapes and types.
Relaxation relax(const Tensor& logits_BVHW, std::span<const RandomKey> keys, double temperature,
                 bool straight_through = false);

/// The relaxation's formula, op by op, for given noise: softmax((logits + gumbel) / temperature) over V, soft in the
/// forward and the backward pass. relax() is tested against it.
Tensor gumbel_softmax(const Tensor& logits_BVHW, const Tensor& gumbel_BVHW, double temperature);

/// KL(softmax(logits) || uniform) in nats per position: [B, H, W]. Uses the raw logits, not divided by the temperature.
/// 0 for uniform logits, ln V for a one-hot code.
Tensor kl_to_uniform(const Tensor& logits_BVHW);

/// argmax codes [B, H, W], int64.
Tensor argmax_codes(const Tensor& logits_BVHW);

/// f32 one-hot [B, V, H, W] of codes [B, H, W].
Tensor one_hot_codes(const Tensor& codes_BHW, int64_t vocab_size);

}  // namespace dalle::layers

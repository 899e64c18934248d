// Queries, keys and values of attention heads as views of one projection, and their gradients side by side, so that neither
// way is a copy.
//
// Tensor suffixes: B batch, L positions, H heads, K head_dim.
#pragma once

#include "dalle/core/tensor.h"

namespace dalle::layers {

struct Heads {
  Tensor q_BHLK, k_BHLK, v_BHLK;
};

/// Views of qkv [B, L, 3 H K], whose last dimension is (query, key or value; head; element). Differentiable; the gradient is
/// put together without a copy where the three are those of empty_heads(), in its memory. Throws c10::ValueError where
/// the last dimension is no multiple of 3 num_heads.
Heads split_heads(const Tensor& qkv_BLD, int64_t num_heads);

/// Uninitialised q, k and v of the shape and type of `like` [B, H, L, K], laid out as split_heads() has them.
Heads empty_heads(const Tensor& like_BHLK);

}  // namespace dalle::layers

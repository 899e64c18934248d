// Attention that computes only what a mask leaves, in the manner of FlashAttention (Dao et al. 2022, 2023): blocks of
// queries against the stretches of keys that they see, scores never stored, recomputed in the backward pass.
// CPU, f32 and bf16 (f32 accumulation and softmax). Tile products are own ones for bf16 on AVX-512, oneDNN's elsewhere (AMX,
// f32).
#pragma once

#include <memory>

#include "dalle/layers/block_sparse_plan.h"
#include "dalle/layers/heads.h"
#include "dalle/layers/transformer.h"

namespace dalle::layers {

/// softmax(q k^T / sqrt(K), over the keys that the plan's mask leaves) v. q, k, v: [B, H, L, K] of one type (f32 or bf16)
/// with K contiguous, on the CPU; the result is a view of memory [B, L, H, K]. What a query may not see gets a weight of
/// exactly 0. Results depend on neither threads nor batch. With dropout the same weights are dropped as by
/// dense_attention(). Throws c10::ValueError for other shapes and types.
Tensor block_sparse_attention(const Tensor& q_BHLK, const Tensor& k_BHLK, const Tensor& v_BHLK,
                              std::shared_ptr<const BlockSparsePlan> plan, const AttentionDropout& dropout = {});

/// That as a block's attention: training and prefill.
AttendFunction sparse_attention(std::shared_ptr<const BlockSparsePlan> plan, AttentionDropout dropout = {});

namespace detail {

/// What bf16 is computed with: oneDNN's small-tile products, own loops for AVX-512, or what suits the processor, oneDNN
/// where it has AMX. f32 is oneDNN's.
enum class AttentionTiles { kAuto, kOneDnn, kOwn };

/// Results of the forward pass over all heads, and what the backward pass needs.
struct AttentionForward {
  Tensor out_BLHK;
  Tensor log_normalizer_BHL;  // ln sum exp(scores), f32, in the plan's order
};
AttentionForward attend_blocks(const Tensor& q_BHLK, const Tensor& k_BHLK, const Tensor& v_BHLK,
                               const BlockSparsePlan& plan, const AttentionDropout& dropout,
                               AttentionTiles tiles = AttentionTiles::kAuto);
/// Gradients side by side (layers/heads.h).
Heads attend_blocks_backward(const Tensor& grad_BHLK, const Tensor& q_BHLK, const Tensor& k_BHLK, const Tensor& v_BHLK,
                             const AttentionForward& forward, const BlockSparsePlan& plan,
                             const AttentionDropout& dropout, AttentionTiles tiles = AttentionTiles::kAuto);

}  // namespace detail
}  // namespace dalle::layers

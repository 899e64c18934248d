// A transformer's blocks for inference in bf16 on the CPU: weights packed once in the order of the processor's dot products,
// biases, activations and residual sums fused into the products, and of the last block only what one position needs. What
// Transformer::forward gives at compute type bf16, to rounding.
#pragma once

#include <memory>
#include <vector>

#include "dalle/layers/bf16_product.h"
#include "dalle/layers/block_sparse_plan.h"
#include "dalle/layers/transformer.h"

namespace dalle::layers {

/// A weight [out, in] for x W^T + b with x of any `in`: padded with zeros to the kernels' multiples.
class PackedLinear {
 public:
  /// bias [out] f32, may be undefined. `out` must be a multiple of 16.
  PackedLinear(const Tensor& weight_OI, const Tensor& bias_O);
  /// bf16 rows [N, in] -> [N, out].
  Tensor forward(const Tensor& x_NI, at::ScalarType out_type, Epilogue epilogue = Epilogue::kNone) const;
  /// sum [N, out] f32 += x W^T + b.
  void add_to(Tensor& sum_NO, const Tensor& x_NI) const;
  /// `in` with the padding: rows that have it already are not copied.
  int64_t depth() const { return matrix_.depth; }

 private:
  Tensor with_padding(const Tensor& x_NI) const;

  PackedMatrix matrix_;
  Tensor bias_;
};

class PackedTransformer {
 public:
  /// Whether this processor has the instructions and the blocks are plain ones, with dims that are multiples of 32.
  static bool fits(const Transformer& transformer);
  /// Copies the matrices; layer norms' and biases' tensors are shared.
  explicit PackedTransformer(const Transformer& transformer);

  /// x [B, L, D] f32, unit stride in D; `plan` is a mask over L positions. The last block's result at position_B[b] (i64) of
  /// sequence b, which may see the positions up to last_B[b]: [B, D] f32.
  Tensor forward(const Tensor& x_BLD, std::shared_ptr<const BlockSparsePlan> plan, const Tensor& position_B,
                 const Tensor& last_B) const;

 private:
  struct Block {
    explicit Block(const TransformerBlock& block, bool is_last);
    const TransformerBlock* source;
    std::vector<PackedLinear> qkv;  // one matrix; of the last block two: queries, then keys and values
    PackedLinear out_proj, c_fc, c_proj;
    Epilogue activation;
  };
  Tensor mlp_of(const Block& block, Tensor x_ND) const;

  std::vector<Block> blocks_;
  int64_t num_heads_;
};

/// f32 rows [N, D] -> the layer norm of each in bf16.
Tensor layer_norm_bf16(const LayerNorm& norm, const Tensor& x_ND);

}  // namespace dalle::layers

// Per-resblock gradient scaling (paper 2.4, app. D), the part that keeps the scales: one for each residual block, 128 at
// paper size, in place of one loss scale for all. layers/scaled_runner.h multiplies with them in the backward pass.
//
// A scale is M 2^(k / 1000), M the number of data-parallel replicas (losses are divided by counts of the global batch).
// It starts at k = 13,000, M 2^13. An update after which all gradients of the block's parameters are finite adds 1 to k, so
// 1,000 of them double the scale exactly; another subtracts 500, a division by sqrt 2, unless the last such division is
// fewer than 125 updates ago. k stays from 7,000 to 24,000.
#pragma once

#include <cstdint>
#include <vector>

#include "dalle/layers/module.h"
#include "dalle/storage/named_tensor.h"

namespace dalle::optim {

/// For each parameter the index that its transformer resblock has for a layers::BlockRunner, or -1 outside of resblocks:
/// "resblocks.L.ln_1", "attn" are 2 L, "ln_2", "mlp" are 2 L + 1; a second tower counts on from the first.
std::vector<int64_t> resblock_indices(const std::vector<layers::NamedParameter>& parameters);

class ResblockScaling {
 public:
  /// For the resblocks of `parameters`, on their device. Throws c10::ValueError where there are none, or replicas < 1.
  ResblockScaling(std::vector<layers::NamedParameter> parameters, int64_t num_replicas);

  int64_t num_blocks() const { return log2_N_.size(0); }
  /// f32 [blocks]; the same tensor until update().
  const Tensor& scales() const { return scales_N_; }
  /// The scale of one block, for ScaledRunner.
  Tensor scale(int64_t block) const { return scales_N_[block]; }

  /// Divides the gradients of the resblocks' parameters by their scales. Returns, bool [blocks], whether a block's are all
  /// finite; a block without gradients counts as finite. To be called once, when all micro-batches have added to them.
  Tensor unscale() const;

  /// The rule above, on the device; `finite_N` must be the same on every rank. An update in which any is false must be
  /// skipped.
  void update(const Tensor& finite_N);

  /// "resblock_scaling.log2" (i64 [blocks], thousandths, without M) and "resblock_scaling.since_division" (i64 [blocks],
  /// updates, at most 125): good for any number of replicas.
  std::vector<storage::NamedTensor> state() const;
  /// Throws CheckpointError for a missing name or another shape, and then changes nothing.
  void load_state(const std::vector<storage::NamedTensor>& state);

 private:
  void compute_scales();

  std::vector<layers::NamedParameter> parameters_;  // of resblocks
  std::vector<int64_t> blocks_;                     // theirs
  int64_t num_replicas_;
  Tensor log2_N_;            // i64, thousandths
  Tensor since_division_N_;  // i64, at most 125
  Tensor scales_N_;
};

}  // namespace dalle::optim

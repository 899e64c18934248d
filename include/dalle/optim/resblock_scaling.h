// Per-resblock gradient scaling (paper 2.4, app. D), the part that keeps the scales: one for each residual block, 128 at
// paper size, in place of one loss scale for all. layers/scaled_runner.h multiplies with them in the backward pass.
//
// A scale is M 2^(k / 1000), M the number of data-parallel replicas (losses are divided by counts of the global batch).
// It starts at k = 13,000, M 2^13. An update after which all gradients of the block's parameters are finite adds 1 to k, so
// 1,000 of them double the scale exactly; another subtracts 500, a division by sqrt 2, unless the last such division is
// fewer than 125 updates ago. k stays from 7,000 to 24,000.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "dalle/layers/module.h"
#include "dalle/storage/named_tensor.h"

namespace dalle::optim {

/// For each parameter the index that its transformer resblock has for a layers::BlockRunner, or -1 outside of resblocks:
/// "resblocks.L.ln_1", "attn" are 2 L, "ln_2", "mlp" are 2 L + 1; a second tower counts on from the first.
std::vector<int64_t> resblock_indices(const std::vector<layers::NamedParameter>& parameters);
/// The name of each resblock by that index: "transformer.resblocks.3.attn", "transformer.resblocks.3.mlp".
std::vector<std::string> resblock_names(const std::vector<layers::NamedParameter>& parameters);

class ResblockScaling {
 public:
  /// For the resblocks of a model with these parameters, on their device. Throws c10::ValueError where there are none, or
  /// replicas < 1.
  ResblockScaling(const std::vector<layers::NamedParameter>& parameters, int64_t num_replicas)
      : ResblockScaling(parameters, num_replicas, parameters) {}
  /// The same where ranks split the parameters: `pieces` are those of this rank, under their parameters' names.
  ResblockScaling(const std::vector<layers::NamedParameter>& parameters, int64_t num_replicas,
                  const std::vector<layers::NamedParameter>& pieces);

  int64_t num_blocks() const { return log2_N_.size(0); }
  const std::vector<std::string>& names() const { return names_; }
  /// f32 [blocks]; the same tensor until update().
  const Tensor& scales() const { return scales_N_; }
  /// The scale of one block, for ScaledRunner.
  Tensor scale(int64_t block) const { return scales_N_[block]; }

  /// log2 of the scales, M included: f64 [blocks].
  Tensor log2_scales() const;
  /// Updates so far in which some block was not finite: an i64 scalar on the device.
  const Tensor& num_overflows() const { return overflows_; }

  /// Divides the gradients of the resblocks' parameters by their scales. Returns, bool [blocks], whether a block's are all
  /// finite; a block without gradients counts as finite. To be called once, when all micro-batches have added to them.
  Tensor unscale();
  /// Whether a block's gradients are all finite, a bool scalar. They may be divided already or not.
  Tensor is_finite(int64_t block) const;
  /// Gradients of the blocks that are not finite become 0.
  void clear(const Tensor& finite_N) const;
  /// Calls see(block, gradient) for each gradient of a resblock's parameter.
  void for_gradients(const std::function<void(int64_t block, const Tensor& gradient)>& see) const;

  /// The rule above, on the device; `finite_N` must be the same on every rank. Blocks that are not finite must be left out
  /// of the update. With `skip`, an f32 scalar on the device, 1 changes nothing: an update that is skipped for other
  /// reasons says nothing of the scales.
  void update(const Tensor& finite_N, const Tensor& skip = {});

  /// "resblock_scaling.log2" (i64 [blocks], thousandths, without M), "resblock_scaling.since_division" (i64 [blocks],
  /// updates, at most 125) and "resblock_scaling.overflows" (i64): good for any number of replicas.
  std::vector<storage::NamedTensor> state() const;
  /// Throws CheckpointError for a missing name or another shape, and then changes nothing.
  void load_state(const std::vector<storage::NamedTensor>& state);
  /// Whether a tensor of the optimizer's file is one of state().
  static bool is_state(const std::string& name);

 private:
  void compute_scales();

  std::vector<std::string> names_;
  std::vector<layers::NamedParameter> parameters_;  // of resblocks, this rank's pieces
  std::vector<int64_t> blocks_;                     // theirs
  std::vector<int64_t> seen_blocks_;                // of the gradients that there were at the last unscale()
  Tensor seen_index_;                               // the same on the device
  int64_t num_replicas_;
  Tensor overflows_;         // i64
  Tensor log2_N_;            // i64, thousandths
  Tensor since_division_N_;  // i64, at most 125
  Tensor scales_N_;
};

}  // namespace dalle::optim

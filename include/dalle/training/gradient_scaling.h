// Per-resblock gradient scaling in the loop (paper 2.4, fig. 4, app. D), for a model whose resblocks compute in fp16. It gives
// the runner that scales each block's gradients on their way through the block, divides the sums by the scales before
// anything else sees them, tells what an update must leave out, and moves the scales.
//
// A block whose parameters have a gradient that is not finite, on any rank, is left out of the update: its gradients are 0 for
// norms and clipping, its weights and moments stay. Nothing of that spoils other blocks, so it is no failure of numbers.
// With compressed gradients the whole update is left out (E.2, steps 10 and 11), and a block's are divided on their way into
// the error buffers, while earlier blocks are in backward (step 2).
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "dalle/distributed/communicator.h"
#include "dalle/layers/scaled_runner.h"
#include "dalle/optim/resblock_scaling.h"
#include "dalle/storage/tensor_pieces.h"
#include "dalle/training/exponent_histogram.h"
#include "dalle/training/metrics.h"

namespace dalle::training {

struct GradientScalingOptions {
  bool skips_whole_updates = false;  // an overflow leaves the whole update out, and gradients stay as they are
  bool counts_parameters = true;     // this rank's gradients of parameters are in exponent histograms
};

/// What an update leaves out: f32 scalars on the device, 1 to stay as it is.
struct UpdateSkips {
  Tensor all;                // for what belongs to no resblock
  std::vector<Tensor> each;  // one for each trained parameter, or none where `all` holds for all
};

class GradientScaling {
 public:
  /// `parameters`: the model's. `trained`: what the optimizer updates, these or this rank's pieces of them under their names.
  /// `ranks`: all, M of them; outlives this. Throws c10::ValueError for a model without transformer resblocks.
  GradientScaling(const std::vector<layers::NamedParameter>& parameters,
                  const std::vector<layers::NamedParameter>& trained, distributed::Communicator& ranks,
                  const GradientScalingOptions& options = {});

  /// Scales blocks that `inner`, which must outlive this, runs.
  layers::BlockRunner& around(layers::BlockRunner& inner);

  /// Before the passes of a step; with `counts_exponents` they are counted.
  void begin_step(bool counts_exponents);
  /// For gradients that something else divides, block by block: the scale of a block, whose gradients are complete and still
  /// times it. Takes down whether they are finite, and counts exponents.
  Tensor take(int64_t block);
  /// After the last backward pass, when gradients are those of the optimizer: divides by the scales, unless blocks were
  /// taken in this step, and tells all ranks which blocks are finite. Every rank must call it.
  void unscale();
  /// The norm of such gradients as it counts for the check of finite numbers: 0 where an overflow accounts for it.
  Tensor without_overflow(const Tensor& norm) const;
  /// Moves the scales, but not where `bad`, an f32 scalar, is 1: then the update is skipped for other reasons.
  UpdateSkips finish_update(const Tensor& bad);

  /// "gradient_scale_log2/BLOCK" of each block, M included, and "overflowed_updates", those so far that left something out.
  NamedValues values() const;
  /// Appends the histograms of the last step, of all ranks. Every rank must call it; the one that `writes` has a file.
  void write_exponents(const std::filesystem::path& jsonl, int64_t step, bool writes);
  std::string describe() const;

  /// The scales' state, whole.
  std::vector<storage::NamedTensor> state() const { return scaling_.state(); }
  /// Throws CheckpointError for a missing name or another shape.
  void load_state(const std::vector<storage::NamedTensor>& state) { scaling_.load_state(state); }

 private:
  void count_exponents(int64_t block, const Tensor& gradient);

  optim::ResblockScaling scaling_;
  std::vector<int64_t> blocks_;  // of the trained parameters, -1 outside of resblocks
  distributed::Communicator& ranks_;
  GradientScalingOptions options_;
  std::optional<layers::ScaledRunner> runner_;
  Tensor finite_N_;                  // of this step
  std::map<int64_t, Tensor> taken_;  // whether the blocks that were taken in this step are finite
  std::optional<ExponentHistogram> exponents_;
  Tensor counted_log2_N_;  // the scales that exponents_ was counted with
};

}  // namespace dalle::training

// Sums gradients over ranks while the backward pass is still under way (Li et al. 2020, "PyTorch Distributed": buckets
// and overlap). Gradients are gathered in flat buckets in the order in which backward completes them; a full bucket's
// all-reduce starts at once and runs beside the rest of the pass.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "dalle/distributed/communicator.h"

namespace dalle::distributed {

class GradientReducer {
 public:
  static constexpr int64_t kBucketBytes = int64_t{25} << 20;

  /// For leaf tensors that are the same on all ranks; those that need no gradient are passed over. They are given hooks,
  /// which go with this object.
  GradientReducer(std::vector<Tensor> parameters, Communicator& communicator, int64_t bucket_bytes = kBucketBytes);
  ~GradientReducer();
  GradientReducer(const GradientReducer&) = delete;
  GradientReducer& operator=(const GradientReducer&) = delete;

  /// To be called before the last backward pass of a step, so that gradients of earlier micro-batches are complete but for
  /// it. The first time backward is only watched: its order on rank 0 makes the buckets, so they are the same on all ranks
  /// and in every run of a model.
  void arm();
  /// To be called after that pass: reduces what is left and waits. Each gradient that any rank has is then the sum over
  /// ranks, with its parameter's layout, in memory of this object that the next armed pass overwrites.
  void finish();

  int64_t num_buckets() const;
  /// Buckets of the last step whose reduction began before finish().
  int64_t num_overlapped() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace dalle::distributed

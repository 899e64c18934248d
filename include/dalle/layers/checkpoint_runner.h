// Activation checkpointing per residual block (Chen et al. 2016, "Training deep nets with sublinear memory cost"; paper
// 2.4): between forward and backward only a block's input is kept, and the block is computed again when its gradient is
// due. Costs one more forward pass; results are the same bit for bit.
#pragma once

#include "dalle/layers/block_runner.h"

namespace dalle::layers {

class CheckpointRunner : public BlockRunner {
 public:
  Tensor run(int64_t index, const Tensor& input, const std::function<Tensor(const Tensor&)>& function) override;
};

}  // namespace dalle::layers

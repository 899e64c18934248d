// The seam between a model and how its residual blocks are run. Every model passes each residual block through
// BlockRunner::run; activation checkpointing, parameter gathering, per-resblock gradient scaling and profiling are
// runners, and models know none of them.
#pragma once

#include <functional>

#include "dalle/core/tensor.h"

namespace dalle::layers {

class BlockRunner {
 public:
  virtual ~BlockRunner() = default;
  /// function(input). `index` counts the residual blocks of the model from 0 in forward order. A runner may keep
  /// `function` and call it again in the backward pass: it must hold by value whatever lives shorter than the model.
  virtual Tensor run(int64_t index, const Tensor& input, const std::function<Tensor(const Tensor&)>& function);
};

/// The default runner, which only calls.
BlockRunner& plain_runner();

}  // namespace dalle::layers

// Block runners that watch or cut into a model's forward pass.
#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "dalle/layers/block_runner.h"

namespace dalle::testing {

/// Records every index it is passed and calls the block.
struct RecordingRunner : layers::BlockRunner {
  Tensor run(int64_t index, const Tensor& input, const std::function<Tensor(const Tensor&)>& function) override {
    indices.push_back(index);
    return function(input);
  }
  std::vector<int64_t> indices;
};

/// Halves the input of one block. A model whose output does not change never took the runner's result.
struct HalvingRunner : layers::BlockRunner {
  explicit HalvingRunner(int64_t halved) : halved(halved) {}
  Tensor run(int64_t index, const Tensor& input, const std::function<Tensor(const Tensor&)>& function) override {
    return index == halved ? function(input * 0.5) : function(input);
  }
  int64_t halved;
};

/// Cuts the graph before block `index`: its input becomes the leaf `input`, and its own result is kept in `output`.
struct ProbingRunner : layers::BlockRunner {
  explicit ProbingRunner(int64_t index) : probed(index) {}
  Tensor run(int64_t index, const Tensor& x, const std::function<Tensor(const Tensor&)>& function) override {
    if (index != probed) return function(x);
    input = x.detach().clone().requires_grad_();
    output = function(input);
    return output;
  }
  int64_t probed;
  Tensor input, output;
};

}  // namespace dalle::testing

// Tells during a backward pass when gradients are complete, so that ranks can begin to sum them beside the rest of the pass.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "dalle/core/tensor.h"

namespace dalle::distributed {

class GradientWatch {
 public:
  /// For leaf tensors, which are given hooks that go with this object. `completed(i)` is called in an armed pass, but the
  /// first, once backward has added to the gradient of parameter i for the last time.
  GradientWatch(std::vector<Tensor> parameters, std::function<void(size_t)> completed);
  ~GradientWatch();
  GradientWatch(const GradientWatch&) = delete;
  GradientWatch& operator=(const GradientWatch&) = delete;

  /// To be called before the last backward pass of a step. The first such pass is only watched: it shows how often backward
  /// adds to each gradient, more than once where a tensor is used in several graphs, and in which order. A later pass that
  /// adds more often throws c10::Error.
  void arm();
  /// To be called after that pass.
  void disarm();
  bool is_armed() const;

  /// Whether a pass adds to this gradient.
  bool has_gradient(size_t parameter) const;
  /// When the watched pass added to it for the last time: a place in the order of all additions, -1 for never.
  int64_t place(size_t parameter) const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace dalle::distributed

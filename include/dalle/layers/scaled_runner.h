// Per-resblock gradient scaling (paper 2.4, fig. 4, app. D), the part that stands in the backward pass. A residual block is
// x + f(x). The gradient that enters f's backward pass is multiplied by the block's own scale, so that 16-bit numbers hold
// it; what leaves it is divided again and added to the gradient of the identity path, which is never scaled. At both places
// infinities and NaN become 0: a block that overflows does not spoil the gradients of those before it. The casts between
// f32 and 16 bits are the block's own.
//
// A model knows nothing of it, so f is not seen alone: the block's gradient is taken as a whole, s g + f'(s g), and where it
// is not finite the identity's part g stands for it. That is g + f'(s g) / s, once rounded more.
//
// The gradients of the block's parameters come out multiplied by the scale: optim/resblock_scaling.h divides them.
#pragma once

#include <functional>

#include "dalle/layers/block_runner.h"

namespace dalle::layers {

class ScaledRunner : public BlockRunner {
 public:
  /// scale_of(index): the block's scale, an f32 scalar on the device, asked in each backward pass of the block; it must
  /// stay the same until the parameters' gradients are divided. `inner`, which must outlive this, runs the block within.
  explicit ScaledRunner(std::function<Tensor(int64_t index)> scale_of, BlockRunner& inner = plain_runner())
      : scale_of_(std::move(scale_of)), inner_(inner) {}

  /// Called in each backward pass with what enters f's: the block's gradient times its scale, before it is filtered.
  void observe(std::function<void(int64_t index, const Tensor& scaled)> observer) { observer_ = std::move(observer); }

  /// Requires that the block keeps its input's shape, or that nothing overflows: elsewhere it throws c10::ValueError in
  /// the backward pass. Scales are kept alive by the graph.
  Tensor run(int64_t index, const Tensor& input, const std::function<Tensor(const Tensor&)>& function) override;

 private:
  std::function<Tensor(int64_t)> scale_of_;
  std::function<void(int64_t, const Tensor&)> observer_;
  BlockRunner& inner_;
};

}  // namespace dalle::layers

// A linear layer as one differentiable step: weights stay f32 masters and are rounded within, so that their gradients are
// summed and returned in f32 without passing through the compute type.
#pragma once

#include <optional>

#include "dalle/core/tensor.h"
#include "dalle/layers/activation.h"

namespace dalle::layers {

/// x W^T + b with operands in x's type and the result in `out_type`, which for bf16 operands may be f32 without passing
/// through bf16. x [..., I]; W [O, I] and b [O] (may be undefined) f32 masters (f64 for f64). Differentiable in x, W and b.
/// bf16 on the CPU runs on layers/bf16_product.h where sizes fit (I and O multiples of 32; else ATen's product). W may lie transposed in memory.
/// With `of_input`, act(x) W^T + b: what is kept for the gradient is x alone, and act(x) is made again. An addend
/// [..., O], the other path of a residual block, is added to a result in f32 or f64, in whose type it is; differentiable too.
Tensor linear(const Tensor& x, const Tensor& weight_OI, const Tensor& bias_O, at::ScalarType out_type,
              std::optional<Activation> of_input = {}, const Tensor& addend = {});

/// While it lives (with `on`), linear() on this thread keeps a weight itself for the gradient and casts it again, where it
/// else keeps a cast: for weights whose memory is given back meanwhile. (Products that read f32 weights keep none anyway.)
class RemadeCasts {
 public:
  explicit RemadeCasts(bool on = true);
  ~RemadeCasts();
  RemadeCasts(const RemadeCasts&) = delete;
  RemadeCasts& operator=(const RemadeCasts&) = delete;

 private:
  bool before_;
};

}  // namespace dalle::layers

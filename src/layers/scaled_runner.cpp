#include "dalle/layers/scaled_runner.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/custom_function.h>

namespace dalle::layers {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

/// What the two ends of a block share in a backward pass. The gradient enters at the output's end first.
struct ScaledBlock : torch::CustomClassHolder {
  std::function<Tensor()> scale;
  std::function<void(const Tensor&)> observer;  // may be none
  Tensor gradient;                              // of the output, from when it entered until it has left
  Tensor factor;                                // the scale, in the gradient's type
};

using ScaledBlockPointer = c10::intrusive_ptr<ScaledBlock>;

ScaledBlock& block_of(AutogradContext* context) {
  return static_cast<ScaledBlock&>(*context->saved_data["block"].toCapsule());
}

/// x itself, as a result whose backward pass finds the block.
Tensor passed(AutogradContext* context, const Tensor& x, const ScaledBlockPointer& block) {
  context->saved_data["block"] = c10::IValue::make_capsule(block);
  return x.view_as(x);
}

/// The block's output; its backward pass multiplies by the scale and filters.
struct ScaledOutput : torch::autograd::Function<ScaledOutput> {
  static Tensor forward(AutogradContext* context, const Tensor& output, const ScaledBlockPointer& block) {
    return passed(context, output, block);
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    ScaledBlock& block = block_of(context);
    block.gradient = grads[0];
    block.factor = block.scale().to(grads[0].scalar_type());
    const Tensor scaled = grads[0] * block.factor;
    if (block.observer) block.observer(scaled);
    return {scaled.masked_fill(scaled.isfinite().logical_not(), 0), Tensor()};
  }
};

/// The block's input; its backward pass divides by the scale and filters.
struct ScaledInput : torch::autograd::Function<ScaledInput> {
  static Tensor forward(AutogradContext* context, const Tensor& input, const ScaledBlockPointer& block) {
    return passed(context, input, block);
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    ScaledBlock& block = block_of(context);
    TORCH_INTERNAL_ASSERT(block.gradient.defined(), "a block's gradient left it before it entered");
    const Tensor identity = std::exchange(block.gradient, Tensor()), factor = std::exchange(block.factor, Tensor());
    const Tensor& whole = grads[0];
    TORCH_CHECK_VALUE(whole.sizes() == identity.sizes(), "[scaled runner] a residual block of ", whole.sizes(),
                      " gave ", identity.sizes(), ": only blocks x + f(x) have an identity path to keep");
    // What the filter took from the identity path on the way in is put back: it is never filtered.
    const Tensor taken = identity.masked_fill((identity * factor).isfinite(), 0);
    const Tensor sum = whole / factor + taken;
    return {at::where(whole.isfinite(), sum, identity), Tensor()};
  }
};

}  // namespace

Tensor ScaledRunner::run(int64_t index, const Tensor& input, const std::function<Tensor(const Tensor&)>& function) {
  if (!c10::GradMode::is_enabled()) return inner_.run(index, input, function);
  const auto block = c10::make_intrusive<ScaledBlock>();
  block->scale = [scale_of = scale_of_, index] { return scale_of(index); };
  if (observer_) block->observer = [observer = observer_, index](const Tensor& scaled) { observer(index, scaled); };
  const Tensor entered = input.requires_grad() ? ScaledInput::apply(input, block) : input;
  const Tensor output = inner_.run(index, entered, function);
  return output.requires_grad() ? ScaledOutput::apply(output, block) : output;
}

}  // namespace dalle::layers

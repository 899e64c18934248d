#include "dalle/layers/checkpoint_runner.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/custom_function.h>

namespace dalle::layers {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

using BlockFunction = std::function<Tensor(const Tensor&)>;

struct KeptFunction : torch::CustomClassHolder {
  explicit KeptFunction(BlockFunction function) : function(std::move(function)) {}
  BlockFunction function;
};

struct CheckpointedBlock : torch::autograd::Function<CheckpointedBlock> {
  // `anchor` always requires a gradient: so the block's parameters get theirs even where its input needs none.
  static Tensor forward(AutogradContext* context, const Tensor& input, const Tensor& /*anchor*/,
                        const BlockFunction& function) {
    context->save_for_backward({input});
    context->saved_data["wants_input"] = input.requires_grad();
    context->saved_data["function"] = c10::IValue::make_capsule(c10::make_intrusive<KeptFunction>(function));
    return function(input);
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto kept = context->saved_data["function"].toCapsule();
    const bool wants_input = context->saved_data["wants_input"].toBool();
    const Tensor input = context->get_saved_variables()[0].detach().requires_grad_(wants_input);
    {
      const c10::AutoGradMode with_grad(true);
      const Tensor output = static_cast<const KeptFunction&>(*kept).function(input);
      torch::autograd::backward({output}, {grads[0]});
    }
    return {input.grad(), Tensor(), Tensor()};
  }
};

}  // namespace

Tensor CheckpointRunner::run(int64_t /*index*/, const Tensor& input, const BlockFunction& function) {
  if (!c10::GradMode::is_enabled()) return function(input);
  const Tensor anchor = at::empty({0}, input.options()).requires_grad_();
  return CheckpointedBlock::apply(input, anchor, function);
}

}  // namespace dalle::layers

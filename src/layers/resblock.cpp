#include "dalle/layers/resblock.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <vector>

#include "dalle/layers/elementwise.h"

namespace dalle::layers {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

Tensor enlarge(const Tensor& x) { return at::upsample_nearest2d(x, {2 * x.size(2), 2 * x.size(3)}); }

// Its gradient: sums over 2x2.
Tensor reduce(const Tensor& grad) {
  const auto s = grad.sizes();
  return at::upsample_nearest2d_backward(grad, {s[2], s[3]}, {s[0], s[1], s[2] / 2, s[3] / 2});
}

// Inputs in order: x, conv_1.w, conv_1.b, ... conv_4.b, and id.w, id.b where there is an id convolution.
struct ResblockFunction : torch::autograd::Function<ResblockFunction> {
  static constexpr size_t kId = 9;

  static Tensor forward(AutogradContext* context, at::TensorList inputs, double gain, at::ScalarType compute,
                        bool enlarges) {
    const Tensor& x = inputs[0];
    const bool has_id = inputs.size() > kId;
    std::array<ConvWeights, 4> convs;
    for (size_t i = 0; i < 4; ++i) convs[i] = {inputs[1 + 2 * i], inputs[2 + 2 * i]};
    const Tensor r1 = relu_to(x, compute);
    Tensor r2 = convolve_relu(r1, convs[0]);
    if (enlarges) r2 = enlarge(r2);
    const Tensor r3 = convolve_relu(r2, convs[1]);
    const Tensor r4 = convolve_relu(r3, convs[2]);
    const Tensor branch = convolve(r4, convs[3]);
    variable_list saved{r1, r2, r3, r4, convs[0].w, convs[1].w, convs[2].w, convs[3].w};
    Tensor through_id = x;
    if (has_id) {
      const ConvWeights id{inputs[kId], inputs[kId + 1]};
      saved.insert(saved.end(), {x.to(compute), id.w});
      through_id = x.scalar_type() == compute ? convolve(x, id) : pointwise_f32(x, id);
    }
    context->save_for_backward(std::move(saved));
    context->saved_data["gain"] = gain;
    context->saved_data["enlarges"] = enlarges;
    context->saved_data["wants_x"] = x.requires_grad();
    return residual_sum(through_id, branch, gain, enlarges);
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const bool has_id = saved.size() > 8, wants_x = context->saved_data["wants_x"].toBool();
    const bool enlarges = context->saved_data["enlarges"].toBool();
    variable_list out(has_id ? 14 : 12);  // the last three arguments have no gradient
    const Tensor grad = grads[0].to(saved[0].scalar_type());
    Tensor flowing = grad;
    for (size_t conv = 4; conv-- > 0;) {
      const bool is_first = conv == 0;
      const auto gradients = convolve_backward(flowing, saved[conv], saved[4 + conv],
                                               {.scale = conv == 3 ? context->saved_data["gain"].toDouble() : 1.0,
                                                .wants_x = !is_first || wants_x,
                                                .relu_output = is_first ? Tensor() : saved[conv]});
      out[1 + 2 * conv] = gradients.w;
      out[2 + 2 * conv] = gradients.b;
      flowing = gradients.x;
      if (conv == 1 && enlarges) flowing = reduce(flowing);
    }
    Tensor through_id = grads[0];
    if (has_id) {
      const Tensor grad_id = enlarges ? reduce(grad) : grad;
      const auto gradients = convolve_backward(grad_id, saved[8], saved[9], {.wants_x = wants_x});
      through_id = gradients.x;
      out[kId] = gradients.w;
      out[kId + 1] = gradients.b;
    } else if (enlarges) {
      through_id = reduce(grads[0]);
    }
    if (wants_x) out[0] = mask_and_add(flowing, saved[0], through_id);
    return out;
  }
};

}  // namespace

Tensor resblock(const Tensor& x, const ConvWeights& id, const std::array<ConvWeights, 4>& convs,
                const ResblockOptions& options) {
  TORCH_CHECK_VALUE(!options.enlarges || convs[0].w.size(2) == 1,
                    "[resblock] enlarging blocks begin with a 1x1 convolution, got a kernel ", convs[0].w.sizes());
  std::vector<Tensor> inputs{x};
  for (const auto& conv : convs) inputs.insert(inputs.end(), {conv.w, conv.b});
  if (id.w.defined()) inputs.insert(inputs.end(), {id.w, id.b});
  return ResblockFunction::apply(at::TensorList(inputs), options.gain, options.compute_dtype, options.enlarges);
}

}  // namespace dalle::layers

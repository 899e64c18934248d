#include "dalle/layers/convolution.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/csrc/autograd/custom_function.h>

#include <optional>
#include <vector>

#include "dalle/layers/channels_last.h"
#include "dalle/layers/elementwise.h"

namespace dalle::layers {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

int64_t padding_of(const Tensor& w) { return (w.size(2) - 1) / 2; }

// oneDNN's convolution with ReLU as a part of it. LibTorch registers the operator for its compiler and has no C++
// function for it.
using ConvolutionPointwise = Tensor(const Tensor&, const Tensor&, const std::optional<Tensor>&, at::IntArrayRef,
                                    at::IntArrayRef, at::IntArrayRef, int64_t, std::string_view,
                                    c10::List<std::optional<at::Scalar>>, std::optional<std::string_view>);

const c10::TypedOperatorHandle<ConvolutionPointwise>* convolution_pointwise() {
  static const auto handle = [] {
    std::optional<c10::TypedOperatorHandle<ConvolutionPointwise>> found;
    if (const auto schema = c10::Dispatcher::singleton().findSchema({"mkldnn::_convolution_pointwise", ""})) {
      found = schema->typed<ConvolutionPointwise>();
    }
    return found;
  }();
  return handle ? &*handle : nullptr;
}

bool is_for_onednn(const Tensor& x) {
  return x.is_cpu() && (x.scalar_type() == at::kFloat || x.scalar_type() == at::kBFloat16) &&
         convolution_pointwise() != nullptr;
}

// A kernel's gradient is one matrix product with the neighbourhoods of all positions. For 1x1 kernels, and where there are
// few positions and many channels, that is up to three times faster than oneDNN's convolution.
constexpr int64_t kFewPositions = 1024;

// [B, C, H, W] -> rows [B H W, kernel * kernel * C]: for each position the channels of its kernel x kernel neighbours.
Tensor neighbourhoods(const Tensor& x, int64_t kernel) {
  if (kernel == 1) return channel_rows(x);
  const int64_t margin = (kernel - 1) / 2, channels = x.size(1);
  const Tensor padded_BHWC = at::constant_pad_nd(x.permute({0, 2, 3, 1}), {0, 0, margin, margin, margin, margin});
  const auto stride = padded_BHWC.strides();
  // A row of `kernel` neighbours lies side by side in memory.
  return padded_BHWC
      .as_strided({x.size(0), x.size(2), x.size(3), kernel, kernel * channels},
                  {stride[0], stride[1], stride[2], stride[1], 1})
      .reshape({-1, kernel * kernel * channels});
}

// A ReLU's gradient, in place: zero where its output was.
void mask_(Tensor& grad, const Tensor& relu_output) { at::threshold_backward_out(grad, grad, relu_output, 0); }

}  // namespace

Tensor convolve(const Tensor& x, const ConvWeights& weights) {
  return at::conv2d(x, weights.w, weights.b, /*stride=*/1, padding_of(weights.w));
}

Tensor convolve_relu(const Tensor& x, const ConvWeights& weights) {
  if (!is_for_onednn(x)) return convolve(x, weights).relu_();
  const int64_t padding = padding_of(weights.w);
  return convolution_pointwise()->call(x, weights.w, weights.b, {padding, padding}, {1, 1}, {1, 1}, /*groups=*/1,
                                       "relu", c10::List<std::optional<at::Scalar>>(), "");
}

ConvGradients convolve_backward(const Tensor& grad, const Tensor& x, const Tensor& w, bool wants_x) {
  const int64_t padding = padding_of(w), positions = grad.size(0) * grad.size(2) * grad.size(3);
  const bool by_product = w.size(2) == 1 || (grad.is_cpu() && positions <= kFewPositions);
  const auto [grad_x, grad_w, grad_b] =
      at::convolution_backward(grad, x, w, at::IntArrayRef{w.size(0)}, {1, 1}, {padding, padding}, {1, 1},
                               /*transposed=*/false, {0, 0}, /*groups=*/1, {wants_x, !by_product, !by_product});
  if (!by_product) return {grad_x, grad_w, grad_b};
  const Tensor grad_rows = channel_rows(grad);
  const Tensor grad_kernel = at::mm(grad_rows.t(), neighbourhoods(x, w.size(2)));
  return {grad_x, grad_kernel.view({w.size(0), w.size(2), w.size(3), w.size(1)}).permute({0, 3, 1, 2}),
          grad_rows.sum(0)};
}

namespace {

// Inputs in order: x, conv_1.w, conv_1.b, ... conv_4.b, and id.w, id.b where there is an id convolution.
struct ResblockFunction : torch::autograd::Function<ResblockFunction> {
  static constexpr size_t kId = 9;

  static Tensor forward(AutogradContext* context, at::TensorList inputs, double gain) {
    const auto weights = [&](size_t at) { return ConvWeights{inputs[at], inputs[at + 1]}; };
    const Tensor& x = inputs[0];
    const bool has_id = inputs.size() > kId;
    const Tensor r1 = at::relu(x);
    const Tensor r2 = convolve_relu(r1, weights(1));
    const Tensor r3 = convolve_relu(r2, weights(3));
    const Tensor r4 = convolve_relu(r3, weights(5));
    Tensor out = convolve(r4, weights(7));
    at::add_out(out, has_id ? convolve(x, weights(kId)) : x, out, gain);
    variable_list saved{r1, r2, r3, r4, inputs[1], inputs[3], inputs[5], inputs[7]};
    if (has_id) saved.insert(saved.end(), {x, inputs[kId]});
    context->save_for_backward(std::move(saved));
    context->saved_data["gain"] = gain;
    context->saved_data["wants_x"] = x.requires_grad();
    return out;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const bool has_id = saved.size() > 8, wants_x = context->saved_data["wants_x"].toBool();
    variable_list out(has_id ? 12 : 10);  // gain, the last argument, has no gradient
    // The gain is applied to conv_4's kernel and its gradients, which are small, rather than to the picture's.
    const double gain = context->saved_data["gain"].toDouble();
    Tensor flowing = grads[0];
    for (size_t conv = 4; conv-- > 0;) {
      const Tensor kernel = conv == 3 ? saved[4 + conv] * gain : saved[4 + conv];
      auto gradients = convolve_backward(flowing, saved[conv], kernel, conv > 0 || wants_x);
      out[1 + 2 * conv] = conv == 3 ? gradients.w.mul_(gain) : gradients.w;
      out[2 + 2 * conv] = conv == 3 ? gradients.b.mul_(gain) : gradients.b;
      flowing = gradients.x;
      if (conv > 0) mask_(flowing, saved[conv]);
    }
    Tensor through_id = grads[0];
    if (has_id) {
      const auto gradients = convolve_backward(grads[0], saved[8], saved[9], wants_x);
      through_id = gradients.x;
      out[kId] = gradients.w;
      out[kId + 1] = gradients.b;
    }
    if (wants_x) {
      mask_and_add_(flowing, saved[0], through_id);
      out[0] = flowing;
    }
    return out;
  }
};

}  // namespace

Tensor resblock(const Tensor& x, const ConvWeights& id, const std::array<ConvWeights, 4>& convs, double gain) {
  std::vector<Tensor> inputs{x};
  for (const auto& conv : convs) inputs.insert(inputs.end(), {conv.w, conv.b});
  if (id.w.defined()) inputs.insert(inputs.end(), {id.w, id.b});
  return ResblockFunction::apply(at::TensorList(inputs), gain);
}

}  // namespace dalle::layers

#include "dalle/layers/convolution.h"

#include <ATen/ATen.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <optional>

#include "dalle/layers/bf16_product.h"
#include "dalle/layers/channels_last.h"
#include "dalle/layers/linear_function.h"
#include "dalle/layers/winograd.h"

namespace dalle::layers {
namespace {

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

Tensor bias_gradient(const Tensor& grad) {
  const Tensor rows = channel_rows(grad);
  return rows.scalar_type() == at::kBFloat16 && rows.is_cpu() ? at::sum(rows, {0}, /*keepdim=*/false, at::kFloat)
                                                              : at::sum(rows, {0});
}

// The matrix [out, in] of a 1x1 kernel.
Tensor matrix_of(const Tensor& w) { return w.reshape({w.size(0), w.size(1)}); }

Tensor input_gradient(const Tensor& grad, const Tensor& x, const Tensor& w, const ConvBackwardOptions& options) {
  if (fits_winograd(grad, w)) return winograd_input_gradient(grad, w, options.scale, options.relu_output);
  const int64_t padding = padding_of(w);
  Tensor kernel = w.to(grad.scalar_type());
  // Applied to the kernel, which is small, rather than to the picture.
  if (options.scale != 1) kernel = kernel * options.scale;
  Tensor out = std::get<0>(at::convolution_backward(grad, x, kernel, at::IntArrayRef{w.size(0)}, {1, 1},
                                                    {padding, padding}, {1, 1},
                                                    /*transposed=*/false, {0, 0}, /*groups=*/1, {true, false, false}));
  if (options.relu_output.defined()) at::threshold_backward_out(out, out, options.relu_output, 0);
  return out;
}

// The gradients of kernel and bias.
ConvGradients weight_gradients(const Tensor& grad, const Tensor& x, const Tensor& w) {
  if (fits_winograd_kernel_gradients(grad, x, w.size(2))) {
    const auto gradients = winograd_kernel_gradients(grad, x);
    return {{}, gradients.w, gradients.b};
  }
  if (fits_conv_kernel_gradients(grad, x)) {
    const auto gradients = conv_kernel_gradients(grad, x, w.size(2));
    return {{}, gradients.w, gradients.b};
  }
  const int64_t padding = padding_of(w), positions = grad.size(0) * grad.size(2) * grad.size(3);
  if (w.size(2) == 1 || (grad.is_cpu() && positions <= kFewPositions)) {
    const Tensor kernel = at::mm(channel_rows(grad).t(), neighbourhoods(x, w.size(2)));
    return {{}, kernel.view({w.size(0), w.size(2), w.size(3), w.size(1)}).permute({0, 3, 1, 2}), bias_gradient(grad)};
  }
  auto [none, kernel, bias] = at::convolution_backward(grad, x, w.to(grad.scalar_type()), at::IntArrayRef{w.size(0)},
                                                       {1, 1}, {padding, padding}, {1, 1}, /*transposed=*/false, {0, 0},
                                                       /*groups=*/1, {false, true, true});
  return {{}, kernel, bias};
}

}  // namespace

Tensor convolve(const Tensor& x, const ConvWeights& weights) {
  if (fits_winograd(x, weights.w)) return winograd_convolve(x, weights.w, weights.b, /*relu=*/false);
  const auto [w, b] = weights.to(x.scalar_type());
  return at::conv2d(x, w, b, /*stride=*/1, padding_of(w));
}

Tensor convolve_relu(const Tensor& x, const ConvWeights& weights) {
  if (fits_winograd(x, weights.w)) return winograd_convolve(x, weights.w, weights.b, /*relu=*/true);
  if (!is_for_onednn(x)) return convolve(x, weights).relu_();
  const auto [w, b] = weights.to(x.scalar_type());
  const int64_t padding = padding_of(w);
  return convolution_pointwise()->call(x, w, b, {padding, padding}, {1, 1}, {1, 1}, /*groups=*/1, "relu",
                                       c10::List<std::optional<at::Scalar>>(), "");
}

ConvGradients convolve_backward(const Tensor& grad, const Tensor& x, const Tensor& w,
                                const ConvBackwardOptions& options) {
  ConvGradients out = weight_gradients(grad, x, w);
  if (options.scale != 1) {
    out.w.mul_(options.scale);
    out.b.mul_(options.scale);
  }
  if (options.wants_x) out.x = input_gradient(grad, x, w, options);
  return out;
}

Tensor pointwise(const Tensor& x, const ConvWeights& weights, at::ScalarType out_type) {
  return from_channel_rows(linear(channel_rows(x), matrix_of(weights.w), weights.b, out_type), x.sizes());
}

Tensor pointwise_f32(const Tensor& x, const ConvWeights& weights) {
  const int64_t in = x.size(1), out = weights.w.size(0);
  if (!x.is_cpu() || !has_bf16_products() || in % 32 != 0 || out % 16 != 0) return convolve(x, weights);
  const Tensor rows = product_nt_f32(channel_rows(x), matrix_of(weights.w), weights.b);
  return from_channel_rows(rows, x.sizes());
}

}  // namespace dalle::layers

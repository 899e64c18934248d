#include "dalle/layers/leaf.h"

#include <ATen/ATen.h>

#include <cmath>

#include "dalle/layers/linear_function.h"

namespace dalle::layers {
namespace {

Tensor wide(const Tensor& x) { return x.scalar_type() == at::kDouble ? x : x.to(at::kFloat); }

}  // namespace

Linear::Linear(Module& parent, std::string name, const LinearOptions& options)
    : Module(parent, std::move(name)), weight(add_parameter("weight", {options.out, options.in}, options.init)) {
  if (options.bias) bias = &add_parameter("bias", {options.out}, Init::zeros(), /*decays=*/false);
}

Tensor Linear::forward(const Tensor& x) const { return forward(x, x.scalar_type()); }

Tensor Linear::forward(const Tensor& x, at::ScalarType out_type, std::optional<Activation> of_input,
                       const Tensor& addend) const {
  return linear(x, weight.tensor, bias == nullptr ? Tensor() : bias->tensor, out_type, of_input, addend);
}

Embedding::Embedding(Module& parent, std::string name, int64_t num, int64_t dim, double init_std)
    : Module(parent, std::move(name)),
      weight(add_parameter("weight", {num, dim}, Init::normal(init_std), /*decays=*/false)) {}

Tensor Embedding::forward(const Tensor& ids) const { return at::embedding(weight.tensor, ids); }

LayerNorm::LayerNorm(Module& parent, std::string name, int64_t dim, double eps)
    : Module(parent, std::move(name)),
      weight(add_parameter("weight", {dim}, Init::ones(), /*decays=*/false)),
      bias(add_parameter("bias", {dim}, Init::zeros(), /*decays=*/false)),
      dim(dim),
      eps(eps) {}

Tensor LayerNorm::forward(const Tensor& x) const {
  return forward(x, x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
}

Tensor LayerNorm::forward(const Tensor& x, at::ScalarType out_type) const {
  return layer_norm(wide(x), weight.tensor, bias.tensor, eps, out_type);
}

NormAndInput LayerNorm::forward_beside(const Tensor& x, at::ScalarType out_type) const {
  return layer_norm_beside(wide(x), weight.tensor, bias.tensor, eps, out_type);
}

Conv2d::Conv2d(Module& parent, std::string name, const Conv2dOptions& options)
    : Module(parent, std::move(name)),
      w(add_parameter("w", {options.out, options.in, options.kernel, options.kernel},
                      Init::normal(1.0 / std::sqrt(static_cast<double>(options.in * options.kernel * options.kernel))),
                      /*decays=*/true, /*channels_last=*/true)),
      b(add_parameter("b", {options.out}, Init::zeros(), /*decays=*/false)),
      padding((options.kernel - 1) / 2) {}

Tensor Conv2d::forward(const Tensor& x) const {
  if (w.tensor.size(2) == 1) return pointwise(x, weights(), x.scalar_type());
  const auto [kernel, bias] = weights().to(x.scalar_type());
  return at::conv2d(x, kernel, bias, /*stride=*/1, padding);
}

}  // namespace dalle::layers

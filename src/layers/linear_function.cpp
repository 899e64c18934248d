#include "dalle/layers/linear_function.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include <utility>

#include "dalle/layers/bf16_product.h"

namespace dalle::layers {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

thread_local bool remakes_casts = false;

/// Whether a product takes the weight as it is, whichever way it lies in memory; else it is cast.
bool fits_forward(const Tensor& x_NI, const Tensor& w_OI) {
  return fits_bf16_product(x_NI, w_OI, w_OI.size(1), w_OI.size(0)) ||
         fits_bf16_product(x_NI, w_OI.t(), w_OI.size(1), w_OI.size(0));
}

/// grad w.
Tensor times(const Tensor& grad_NO, const Tensor& w_OI) {
  const int64_t out = w_OI.size(0), in = w_OI.size(1);
  if (fits_bf16_product(grad_NO, w_OI, out, in)) return product_nn(grad_NO, w_OI, grad_NO.scalar_type());
  if (fits_bf16_product(grad_NO, w_OI.t(), out, in)) return product_nt(grad_NO, w_OI.t(), grad_NO.scalar_type());
  if (w_OI.scalar_type() != grad_NO.scalar_type()) return times(grad_NO, w_OI.to(grad_NO.scalar_type()));
  return at::mm(grad_NO, w_OI);
}

struct LinearFunction : torch::autograd::Function<LinearFunction> {
  static Tensor forward(AutogradContext* context, const Tensor& rows, const Tensor& weight,
                        const std::optional<Tensor>& bias, at::ScalarType out_type, std::optional<Activation> of_input,
                        const std::optional<Tensor>& addend) {
    const Tensor x = of_input ? activate(rows, *of_input) : rows;
    const Tensor w = fits_forward(x, weight) ? weight : weight.to(rows.scalar_type());
    context->save_for_backward({rows, remakes_casts ? weight : w});
    context->saved_data["wants_x"] = rows.requires_grad();
    context->saved_data["weight_type"] = weight.scalar_type();
    context->saved_data["has_bias"] = bias.has_value();
    context->saved_data["has_addend"] = addend.has_value();
    if (of_input) context->saved_data["of_input"] = static_cast<int64_t>(*of_input);
    const auto bias_in = [&](at::ScalarType type) {
      return bias ? std::optional<Tensor>(bias->to(type)) : std::nullopt;
    };
    const int64_t in = w.size(1), out = w.size(0);
    const Tensor last = addend.value_or(Tensor());
    if (fits_bf16_product(x, w, in, out)) return product_nt(x, w, out_type, bias_in(at::kFloat), last);
    if (fits_bf16_product(x, w.t(), in, out)) return product_nn(x, w.t(), out_type, bias_in(at::kFloat), last);
    const Tensor product = at::linear(x, w, bias_in(x.scalar_type())).to(out_type);
    return last.defined() ? last + product : product;
  }

  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    Tensor rows = saved[0];
    const Tensor& w = saved[1];
    const auto of_input = context->saved_data.find("of_input");
    const bool is_activated = of_input != context->saved_data.end();
    const auto weight_type = context->saved_data["weight_type"].toScalarType();
    const bool has_bias = context->saved_data["has_bias"].toBool();
    const Tensor grad = grads[0].to(rows.scalar_type()).contiguous();
    variable_list out(6);
    if (context->saved_data["has_addend"].toBool()) out[5] = grads[0];
    if (is_activated || context->saved_data["wants_x"].toBool()) {
      out[0] = times(grad, w);
    }
    if (is_activated) {
      const auto activated = activate_backward(out[0], rows, static_cast<Activation>(of_input->second.toInt()));
      rows = activated.value;
      out[0] = activated.grad;
    }
    if (fits_linear_gradients(grad, rows)) {
      const auto gradients = linear_gradients(grad, rows);
      out[1] = gradients.w;
      if (has_bias) out[2] = gradients.b;
      return out;
    }
    // In the weight's own memory order: autograd would copy another one.
    const bool is_transposed = w.stride(0) == 1 && w.stride(1) == w.size(0);
    out[1] = (is_transposed ? at::mm(rows.t(), grad).t() : at::mm(grad.t(), rows)).to(weight_type);
    if (has_bias) out[2] = at::sum(grad, {0}, /*keepdim=*/false, weight_type);
    return out;
  }
};

}  // namespace

RemadeCasts::RemadeCasts(bool on) : before_(std::exchange(remakes_casts, on)) {}
RemadeCasts::~RemadeCasts() { remakes_casts = before_; }

Tensor linear(const Tensor& x, const Tensor& weight_OI, const Tensor& bias_O, at::ScalarType out_type,
              std::optional<Activation> of_input, const Tensor& addend) {
  auto sizes = x.sizes().vec();
  sizes.back() = weight_OI.size(0);
  const bool is_wide = out_type == at::kFloat || out_type == at::kDouble;
  TORCH_CHECK_VALUE(!addend.defined() || (addend.sizes() == sizes && addend.scalar_type() == out_type && is_wide),
                    "[linear] expected an addend of the result's size ", at::IntArrayRef(sizes), " and type ",
                    c10::toString(out_type), ", got ", addend.sizes(), " of ", addend.toString());
  const auto bias = bias_O.defined() ? std::optional<Tensor>(bias_O) : std::nullopt;
  std::optional<Tensor> rows;
  if (addend.defined()) rows = addend.reshape({-1, weight_OI.size(0)}).contiguous();
  return LinearFunction::apply(x.reshape({-1, x.size(-1)}), weight_OI, bias, out_type, of_input, rows).view(sizes);
}

}  // namespace dalle::layers

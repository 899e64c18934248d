// The output head and its loss in one step that never holds the logits as a whole: for some rows at a time the logits, the
// loss and, where gradients are wanted, their gradient and what follows from it for the head's inputs. Nothing but gradients
// of the size of inputs and weights is kept for the backward pass.
#pragma once

#include "dalle/core/tensor.h"

namespace dalle::layers {

/// Rows of logits, in f32, that exist at once: about a million numbers, which a CPU's last cache holds, or four elsewhere.
int64_t rows_of_logits_at_once(int64_t vocab, at::DeviceType device);
/// Rows whose logits' gradients, in the compute type, exist at once: about 16 MiB. As many as fit, since each such
/// stretch adds a gradient of the whole weight.
int64_t rows_of_gradients_at_once(int64_t vocab, at::ScalarType compute_dtype);

/// scale * sum over rows with target >= 0 of -log softmax(h W^T + b)[target], a scalar in f32 (f64 for f64). hidden [N, D] in
/// f32 or f64; W [V, D] and b [V] (may be undefined) f32 masters; targets [N] int64 below V. `compute_dtype` is that of the
/// products' operands; logits, softmax and sums are f32. Differentiable in hidden, W and b. Throws c10::ValueError for
/// other shapes.
Tensor linear_cross_entropy(const Tensor& hidden_ND, const Tensor& weight_VD, const Tensor& bias_V,
                            const Tensor& targets_N, at::ScalarType compute_dtype, double scale = 1);

/// The same without a gradient, not summed and not scaled: [N], 0 where the target is negative.
Tensor linear_cross_entropy_each(const Tensor& hidden_ND, const Tensor& weight_VD, const Tensor& bias_V,
                                 const Tensor& targets_N, at::ScalarType compute_dtype);

}  // namespace dalle::layers

// The loops of relax() and its gradient, over rows: one position of one picture, its V codes side by side.
// Chosen by the device; src/layers/relaxation_cpu.cpp is vectorised C++, relaxation_cuda.cu the same on a GPU.
#pragma once

#include "dalle/core/tensor.h"

namespace dalle::layers::detail {

/// What the gradient needs of each row beside logits and soft codes.
struct RowStatistics {
  Tensor log_normalizer_N;  // ln sum exp(logits), f32
  Tensor kl_N;              // KL to uniform, f32
};

struct RelaxationRows {
  Tensor soft_NV;  // softmax((logits + gumbel) / temperature), in the logits' type
  Tensor hard_NV;  // one-hot of its argmax, where asked for
  RowStatistics statistics;
};

/// logits_NV: contiguous f32 or bf16 (CUDA: f16 too), N = B times positions a picture. keys_B2: random_keys_tensor() on
/// the same device. Noise of position p of picture b: elements p V ... p V + V - 1 of the stream of key b.
RelaxationRows relax_rows_cpu(const Tensor& logits_NV, const Tensor& keys_B2, double temperature, bool hard);
RelaxationRows relax_rows_cuda(const Tensor& logits_NV, const Tensor& keys_B2, double temperature, bool hard);

/// Writes the gradient of the logits into out_NV, which may be grad_soft_NV itself. grad_soft_NV (of the codes) and
/// grad_kl_N may be undefined: zero.
void relax_rows_backward_cpu(const Tensor& grad_soft_NV, const Tensor& grad_kl_N, const Tensor& logits_NV,
                             const Tensor& soft_NV, const RowStatistics& statistics, double temperature,
                             const Tensor& out_NV);
void relax_rows_backward_cuda(const Tensor& grad_soft_NV, const Tensor& grad_kl_N, const Tensor& logits_NV,
                              const Tensor& soft_NV, const RowStatistics& statistics, double temperature,
                              const Tensor& out_NV);

}  // namespace dalle::layers::detail

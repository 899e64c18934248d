// Leaf modules: linear, embedding, layer norm, convolution. Weights are f32 masters; the compute type is the type of the
// input, to which the weights are cast on use (bf16 operands, f32 accumulation).
#pragma once

#include <optional>

#include "dalle/layers/activation.h"
#include "dalle/layers/convolution.h"
#include "dalle/layers/layer_norm_function.h"
#include "dalle/layers/module.h"

namespace dalle::layers {

struct LinearOptions {
  int64_t in = 0;
  int64_t out = 0;
  bool bias = true;
  Init init = Init::normal(0.02);
};

/// y = x W^T + b; parameters "weight" [out, in] and "bias" [out].
struct Linear : Module {
  Linear(Module& parent, std::string name, const LinearOptions& options);
  Tensor forward(const Tensor& x) const;
  /// linear() of linear_function.h.
  Tensor forward(const Tensor& x, at::ScalarType out_type, std::optional<Activation> of_input = {},
                 const Tensor& addend = {}) const;
  Parameter& weight;
  Parameter* bias = nullptr;
};

/// Parameter "weight" [num, dim]; forward looks up int64 ids of any shape.
struct Embedding : Module {
  Embedding(Module& parent, std::string name, int64_t num, int64_t dim, double init_std);
  Tensor forward(const Tensor& ids) const;
  Parameter& weight;
};

/// Layer norm over the last dimension, statistics in f32 (f64 for f64), output in f32 (f64) or in `out_type`. Parameters
/// "weight", "bias".
struct LayerNorm : Module {
  LayerNorm(Module& parent, std::string name, int64_t dim, double eps = 1e-5);
  Tensor forward(const Tensor& x) const;
  Tensor forward(const Tensor& x, at::ScalarType out_type) const;
  /// layer_norm_beside() of layer_norm_function.h.
  NormAndInput forward_beside(const Tensor& x, at::ScalarType out_type) const;
  Parameter& weight;
  Parameter& bias;
  int64_t dim;
  double eps;
};

struct Conv2dOptions {
  int64_t in = 0;
  int64_t out = 0;
  int64_t kernel = 1;  // square, odd; padding (kernel - 1) / 2 keeps the size
};

/// The dVAE's convolution (openai/DALL-E dall_e/utils.py): parameters "w" [out, in, k, k] ~ N(0, 1/sqrt(in k^2)), "b" 0.
struct Conv2d : Module {
  Conv2d(Module& parent, std::string name, const Conv2dOptions& options);
  Tensor forward(const Tensor& x) const;
  /// The f32 masters.
  ConvWeights weights() const { return {w.tensor, b.tensor}; }
  Parameter& w;
  Parameter& b;
  int64_t padding;
};

}  // namespace dalle::layers

// The base of every model: a tree of named parameters that can live on the meta device and are initialised by a separate,
// seeded pass. LibTorch's own torch::nn leaf modules allocate at construction and cost 7-19 s to include.
//
// A child is a plain member that names itself to its parent, so the checkpoint name is visible where it is declared and
// there is nothing to register twice:
//
//   struct Mlp : Module {
//     Mlp(Module& parent, std::string name, int64_t dim) : Module(parent, name),
//         c_fc{*this, "c_fc", {.in = dim, .out = 4 * dim}}, c_proj{*this, "c_proj", {.in = 4 * dim, .out = dim}} {}
//     Linear c_fc, c_proj;
//   };
//
// Modules hold references to each other and are therefore neither copied nor moved.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "dalle/core/tensor.h"

namespace dalle::layers {

/// How a parameter starts. Normal: N(0, value^2); constant: `value`.
struct Init {
  enum class Kind { kNormal, kConstant } kind = Kind::kConstant;
  double value = 0;
  static Init zeros() { return {Kind::kConstant, 0}; }
  static Init ones() { return {Kind::kConstant, 1}; }
  static Init constant(double value) { return {Kind::kConstant, value}; }
  static Init normal(double std) { return {Kind::kNormal, std}; }
};

/// A trainable tensor. Until materialize() it is on the meta device: shape and type, no memory.
struct Parameter {
  std::string name;  // own part, for example "w"
  Tensor tensor;     // f32 master weights
  Init init;
  bool decays = true;          // weight decay applies (matrices and kernels; not gains, biases, embeddings)
  bool channels_last = false;  // 4-D kernels are stored NHWC
};

/// A parameter with its full name, "encoder.blocks.group_1.block_1.res_path.conv_1.w".
struct NamedParameter {
  std::string name;
  Parameter* parameter;
};

/// Fills a parameter by its Init, from its own stream (seed, kInit, hash of its full name).
void initialize_parameter(const NamedParameter& entry, uint64_t seed);

class Module {
 public:
  Module() = default;                        // a root
  Module(Module& parent, std::string name);  // a child
  Module(const Module&) = delete;
  Module& operator=(const Module&) = delete;
  virtual ~Module() = default;

  /// Declares a parameter of this module. Weight decay by default holds for matrices and kernels.
  Parameter& add_parameter(std::string name, at::IntArrayRef shape, Init init, bool decays = true,
                           bool channels_last = false);

  /// All parameters below this module, in declaration order.
  std::vector<NamedParameter> named_parameters() const;
  /// Number of scalars over all parameters.
  int64_t num_parameters() const;

  /// Type of the master weights instead of f32; to be called before materialize().
  void set_parameter_type(at::ScalarType type);
  /// Allocates every parameter that is still on the meta device. Values are undefined until initialize() or load.
  void materialize(at::Device device);
  /// initialize_parameter() for each: the values do not depend on order or on other parameters.
  void initialize(uint64_t seed);
  /// Sets requires_grad on the parameters whose full name starts with one of `prefixes` ("" is all).
  void set_requires_grad(bool requires_grad, const std::vector<std::string>& prefixes = {""});
  /// Device of the first parameter.
  at::Device device() const;

 private:
  void collect(const std::string& prefix, std::vector<NamedParameter>& out) const;

  std::string name_;
  std::vector<Module*> children_;
  std::vector<std::unique_ptr<Parameter>> parameters_;
};

}  // namespace dalle::layers

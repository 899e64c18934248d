#include "dalle/layers/module.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>

#include "dalle/core/random.h"

namespace dalle::layers {

Module::Module(Module& parent, std::string name) : name_(std::move(name)) { parent.children_.push_back(this); }

Parameter& Module::add_parameter(std::string name, at::IntArrayRef shape, Init init, bool decays, bool channels_last) {
  auto parameter = std::make_unique<Parameter>();
  parameter->name = std::move(name);
  parameter->tensor = at::empty(shape, at::TensorOptions().dtype(at::kFloat).device(at::kMeta));
  parameter->tensor.set_requires_grad(true);
  parameter->init = init;
  parameter->decays = decays && shape.size() >= 2;  // never gains, biases and scalars
  parameter->channels_last = channels_last;
  return *parameters_.emplace_back(std::move(parameter));
}

void Module::collect(const std::string& prefix, std::vector<NamedParameter>& out) const {
  for (const auto& parameter : parameters_) out.push_back({prefix + parameter->name, parameter.get()});
  for (const Module* child : children_) child->collect(prefix + child->name_ + ".", out);
}

std::vector<NamedParameter> Module::named_parameters() const {
  std::vector<NamedParameter> out;
  collect("", out);
  return out;
}

int64_t Module::num_parameters() const {
  int64_t total = 0;
  for (const auto& [name, parameter] : named_parameters()) total += parameter->tensor.numel();
  return total;
}

void Module::set_parameter_type(at::ScalarType type) {
  for (const auto& [name, parameter] : named_parameters()) {
    Tensor& tensor = parameter->tensor;
    TORCH_INTERNAL_ASSERT(tensor.is_meta(), "parameter ", name, " has its memory already");
    tensor = at::empty(tensor.sizes(), tensor.options().dtype(type)).set_requires_grad(tensor.requires_grad());
  }
}

void Module::materialize(at::Device device) {
  for (const auto& [name, parameter] : named_parameters()) {
    Tensor& tensor = parameter->tensor;
    if (!tensor.is_meta()) continue;
    const bool requires_grad = tensor.requires_grad();
    const auto format = parameter->channels_last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous;
    tensor = at::empty(tensor.sizes(), at::TensorOptions().dtype(tensor.dtype()).device(device).memory_format(format));
    tensor.set_requires_grad(requires_grad);
  }
}

void initialize_parameter(const NamedParameter& entry, uint64_t seed) {
  const c10::NoGradGuard no_grad;
  const auto& [name, parameter] = entry;
  Tensor& tensor = parameter->tensor;
  if (parameter->init.kind == Init::Kind::kConstant) {
    tensor.fill_(parameter->init.value);
  } else {
    const RandomKey key = random_key(seed, Purpose::kInit, stable_hash(name));
    tensor.copy_(normal(key, tensor.numel()).mul_(parameter->init.value).view(tensor.sizes()));
  }
}

void Module::initialize(uint64_t seed) {
  for (const auto& entry : named_parameters()) initialize_parameter(entry, seed);
}

void Module::set_requires_grad(bool requires_grad, const std::vector<std::string>& prefixes) {
  for (const auto& [name, parameter] : named_parameters()) {
    const bool match = std::any_of(prefixes.begin(), prefixes.end(),
                                   [&](const std::string& prefix) { return name.starts_with(prefix); });
    if (match) parameter->tensor.set_requires_grad(requires_grad);
  }
}

at::Device Module::device() const {
  const auto parameters = named_parameters();
  TORCH_INTERNAL_ASSERT(!parameters.empty());
  return parameters.front().parameter->tensor.device();
}

}  // namespace dalle::layers

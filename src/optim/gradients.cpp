#include "dalle/optim/gradients.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <cmath>
#include <limits>

namespace dalle::optim {
namespace {

/// The gradients that exist, and their parameters' names.
struct Gradients {
  std::vector<Tensor> tensors;
  std::vector<std::string> names;
};

Gradients collect(const std::vector<layers::NamedParameter>& parameters) {
  Gradients gradients;
  for (const auto& [name, parameter] : parameters) {
    const Tensor& gradient = parameter->tensor.grad();
    if (!gradient.defined() || gradient.numel() == 0) continue;
    gradients.tensors.push_back(gradient);
    gradients.names.push_back(name);
  }
  return gradients;
}

at::TensorOptions options_of(const std::vector<layers::NamedParameter>& parameters) {
  const auto device = parameters.empty() ? at::Device(at::kCPU) : parameters.front().parameter->tensor.device();
  return at::TensorOptions(at::kFloat).device(device);
}

/// f64 [number of gradients].
Tensor norms_of(const std::vector<Tensor>& gradients, double order = 2) {
  return at::stack(at::_foreach_norm(gradients, order)).to(at::kDouble);
}

/// Position just past the component that starts at `begin`.
size_t end_of(const std::string& name, size_t begin) { return std::min(name.find('.', begin), name.size()); }

}  // namespace

GradientNorms gradient_norms(const std::vector<layers::NamedParameter>& parameters) {
  const c10::NoGradGuard no_grad;
  Gradients gradients = collect(parameters);
  if (gradients.tensors.empty()) return {{}, at::zeros({0}, options_of(parameters).dtype(at::kDouble))};
  return {std::move(gradients.names), norms_of(gradients.tensors)};
}

Tensor global_norm(const std::vector<layers::NamedParameter>& parameters) {
  return global_norm(gradient_norms(parameters));
}

Tensor global_norm(const GradientNorms& norms) { return norms.norms_P.square().sum().sqrt().to(at::kFloat); }

Tensor clip_by_global_norm(const std::vector<layers::NamedParameter>& parameters, double max_norm) {
  const Tensor norm = global_norm(parameters);
  clip_by_global_norm(parameters, max_norm, norm);
  return norm;
}

void clip_by_global_norm(const std::vector<layers::NamedParameter>& parameters, double max_norm, const Tensor& norm) {
  const c10::NoGradGuard no_grad;
  const Gradients gradients = collect(parameters);
  if (!gradients.tensors.empty()) at::_foreach_mul_(gradients.tensors, (max_norm / (norm + 1e-6)).clamp_max(1.0));
}

Tensor all_finite(const std::vector<layers::NamedParameter>& parameters) {
  const c10::NoGradGuard no_grad;
  const Gradients gradients = collect(parameters);
  if (gradients.tensors.empty()) return at::ones({}, options_of(parameters).dtype(at::kBool));
  return norms_of(gradients.tensors, std::numeric_limits<double>::infinity()).isfinite().all();
}

std::string block_of(const std::string& name) {
  constexpr std::string_view kLayers = "resblocks.", kGroups = "blocks.", kGroup = "group_";
  auto component = [&](std::string_view text) {  // where a component begins with `text`, or npos
    if (name.starts_with(text)) return size_t{0};
    const size_t at = name.find("." + std::string(text));
    return at == std::string::npos ? at : at + 1;
  };
  if (const size_t at = component(kLayers); at != std::string::npos)
    return name.substr(0, end_of(name, at + kLayers.size()));
  if (const size_t at = component(kGroups); at != std::string::npos) {
    size_t end = end_of(name, at + kGroups.size());
    const bool is_group = name.compare(at + kGroups.size(), kGroup.size(), kGroup) == 0;
    if (is_group && end < name.size()) end = end_of(name, end + 1);
    return name.substr(0, end);
  }
  return name.substr(0, end_of(name, 0));
}

std::vector<BlockNorm> block_norms(const std::vector<layers::NamedParameter>& parameters) {
  return block_norms(gradient_norms(parameters));
}

std::vector<BlockNorm> block_norms(const GradientNorms& gradients) {
  const Tensor norms = gradients.norms_P.cpu();
  std::vector<BlockNorm> blocks;
  for (size_t i = 0; i < gradients.names.size(); ++i) {
    const std::string block = block_of(gradients.names[i]);
    auto found = std::find_if(blocks.begin(), blocks.end(), [&](const auto& entry) { return entry.block == block; });
    if (found == blocks.end()) found = blocks.insert(blocks.end(), {block, 0});
    const double norm = norms.const_data_ptr<double>()[i];
    found->norm += norm * norm;
  }
  for (auto& entry : blocks) entry.norm = std::sqrt(entry.norm);
  return blocks;
}

}  // namespace dalle::optim

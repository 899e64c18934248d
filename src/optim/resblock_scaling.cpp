#include "dalle/optim/resblock_scaling.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <limits>
#include <map>

#include "dalle/core/error.h"
#include "dalle/core/str.h"

namespace dalle::optim {
namespace {

// In thousandths of a doubling.
constexpr int64_t kStart = 13'000, kLowest = 7'000, kHighest = 24'000, kGrowth = 1, kDivision = 500;
constexpr int64_t kUpdatesBetweenDivisions = 125;

constexpr const char *kLog2 = "resblock_scaling.log2", *kSinceDivision = "resblock_scaling.since_division";

/// A resblock's tower ("visual.transformer."), layer, and whether it is the second of the layer.
struct Place {
  std::string tower;
  int64_t layer = 0;
  bool is_mlp = false;
};

std::optional<Place> place_of(const std::string& name) {
  constexpr std::string_view kResblocks = "resblocks.";
  const size_t at = name.find(kResblocks);
  if (at == std::string::npos || (at > 0 && name[at - 1] != '.')) return std::nullopt;
  const size_t number = at + kResblocks.size(), part = name.find('.', number);
  if (part == std::string::npos) return std::nullopt;
  const std::string_view rest = std::string_view(name).substr(part + 1);
  return Place{name.substr(0, at), std::stoll(name.substr(number, part - number)),
               rest.starts_with("ln_2") || rest.starts_with("mlp")};
}

}  // namespace

std::vector<int64_t> resblock_indices(const std::vector<layers::NamedParameter>& parameters) {
  std::map<std::string, int64_t> layers_of_tower;
  std::vector<std::string> towers;  // in order of appearance
  for (const auto& parameter : parameters) {
    const auto place = place_of(parameter.name);
    if (!place) continue;
    if (!layers_of_tower.contains(place->tower)) towers.push_back(place->tower);
    int64_t& layers = layers_of_tower[place->tower];
    layers = std::max(layers, place->layer + 1);
  }
  std::map<std::string, int64_t> first_layer;
  int64_t layers = 0;
  for (const auto& tower : towers) {
    first_layer[tower] = layers;
    layers += layers_of_tower[tower];
  }
  std::vector<int64_t> indices;
  for (const auto& parameter : parameters) {
    const auto place = place_of(parameter.name);
    indices.push_back(place ? 2 * (first_layer[place->tower] + place->layer) + (place->is_mlp ? 1 : 0) : -1);
  }
  return indices;
}

ResblockScaling::ResblockScaling(std::vector<layers::NamedParameter> parameters, int64_t num_replicas)
    : num_replicas_(num_replicas) {
  TORCH_CHECK_VALUE(num_replicas >= 1, "[resblock scaling] replicas must be at least 1, got ", num_replicas);
  const auto indices = resblock_indices(parameters);
  for (size_t i = 0; i < parameters.size(); ++i) {
    if (indices[i] < 0) continue;
    parameters_.push_back(std::move(parameters[i]));
    blocks_.push_back(indices[i]);
  }
  TORCH_CHECK_VALUE(!blocks_.empty(), "[resblock scaling] the model has no transformer resblocks");
  const int64_t num_blocks = *std::max_element(blocks_.begin(), blocks_.end()) + 1;
  const auto options = at::TensorOptions(at::kLong).device(parameters_[0].parameter->tensor.device());
  log2_N_ = at::full({num_blocks}, kStart, options);
  since_division_N_ = at::full({num_blocks}, kUpdatesBetweenDivisions, options);
  compute_scales();
}

void ResblockScaling::compute_scales() {
  const Tensor powers = at::exp2(log2_N_.to(at::kDouble) / 1000.0);
  scales_N_ = (powers * static_cast<double>(num_replicas_)).to(at::kFloat);
}

Tensor ResblockScaling::unscale() const {
  const c10::NoGradGuard no_grad;
  std::vector<Tensor> gradients;
  std::vector<int64_t> blocks;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const Tensor& gradient = parameters_[i].parameter->tensor.grad();
    if (!gradient.defined() || gradient.numel() == 0) continue;
    gradient.div_(scales_N_[blocks_[i]]);
    gradients.push_back(gradient);
    blocks.push_back(blocks_[i]);
  }
  if (gradients.empty()) return at::ones_like(log2_N_, at::kBool);
  const Tensor largest = at::stack(at::_foreach_norm(gradients, std::numeric_limits<double>::infinity()));
  const Tensor bad = largest.isfinite().logical_not().to(at::kLong);
  const Tensor index = at::tensor(blocks, at::kLong).to(bad.device());
  return at::zeros_like(log2_N_).index_add(0, index, bad).eq(0);
}

void ResblockScaling::update(const Tensor& finite_N) {
  const c10::NoGradGuard no_grad;
  const Tensor divides = finite_N.logical_not().logical_and(since_division_N_.ge(kUpdatesBetweenDivisions));
  const Tensor change = finite_N.to(at::kLong) * kGrowth - divides.to(at::kLong) * kDivision;
  log2_N_ = (log2_N_ + change).clamp(kLowest, kHighest);
  // Updates since the last division, this one included: 1 for the division's own.
  since_division_N_ = (since_division_N_ * divides.logical_not() + 1).clamp_max(kUpdatesBetweenDivisions);
  compute_scales();
}

std::vector<storage::NamedTensor> ResblockScaling::state() const {
  return {{kLog2, log2_N_.clone()}, {kSinceDivision, since_division_N_.clone()}};
}

void ResblockScaling::load_state(const std::vector<storage::NamedTensor>& state) {
  std::vector<Tensor> loaded;
  for (const char* name : {kLog2, kSinceDivision}) {
    const Tensor* tensor = storage::find_tensor(state, name);
    if (tensor == nullptr || tensor->sizes() != log2_N_.sizes()) {
      throw CheckpointError(Problem{.place = "state of gradient scales",
                                    .expected = dalle::str("'", name, "' of ", num_blocks(), " resblocks"),
                                    .got = tensor == nullptr ? "none" : dalle::str("shape ", tensor->sizes()),
                                    .hint = "it belongs to another model"});
    }
    loaded.push_back(tensor->to(log2_N_.options(), /*non_blocking=*/false, /*copy=*/true));
  }
  log2_N_ = loaded[0];
  since_division_N_ = loaded[1];
  compute_scales();
}

}  // namespace dalle::optim

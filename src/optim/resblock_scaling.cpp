#include "dalle/optim/resblock_scaling.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "dalle/core/error.h"
#include "dalle/core/str.h"

namespace dalle::optim {
namespace {

// In thousandths of a doubling.
constexpr int64_t kStart = 13'000, kLowest = 7'000, kHighest = 24'000, kGrowth = 1, kDivision = 500;
constexpr int64_t kUpdatesBetweenDivisions = 125;

constexpr std::string_view kPrefix = "resblock_scaling.";
constexpr const char *kLog2 = "resblock_scaling.log2", *kSinceDivision = "resblock_scaling.since_division",
                     *kOverflows = "resblock_scaling.overflows";

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

std::vector<std::string> resblock_names(const std::vector<layers::NamedParameter>& parameters) {
  const auto indices = resblock_indices(parameters);
  std::vector<std::string> names;
  for (size_t i = 0; i < parameters.size(); ++i) {
    if (indices[i] < 0) continue;
    const auto place = place_of(parameters[i].name);
    const auto index = static_cast<size_t>(indices[i]);
    if (names.size() <= index) names.resize(index + 1);
    names[index] = dalle::str(place->tower, "resblocks.", place->layer, place->is_mlp ? ".mlp" : ".attn");
  }
  return names;
}

ResblockScaling::ResblockScaling(const std::vector<layers::NamedParameter>& parameters, int64_t num_replicas,
                                 const std::vector<layers::NamedParameter>& pieces)
    : names_(resblock_names(parameters)), num_replicas_(num_replicas) {
  TORCH_CHECK_VALUE(num_replicas >= 1, "[resblock scaling] replicas must be at least 1, got ", num_replicas);
  TORCH_CHECK_VALUE(!names_.empty(), "[resblock scaling] the model has no transformer resblocks");
  const auto indices = resblock_indices(parameters);
  std::map<std::string, int64_t> block_of_name;
  for (size_t i = 0; i < parameters.size(); ++i) block_of_name[parameters[i].name] = indices[i];
  for (const auto& piece : pieces) {
    const int64_t block = block_of_name.at(piece.name);
    if (block < 0) continue;
    parameters_.push_back(piece);
    blocks_.push_back(block);
  }
  const auto num_blocks = static_cast<int64_t>(names_.size());
  const auto options = at::TensorOptions(at::kLong).device(parameters[0].parameter->tensor.device());
  overflows_ = at::zeros({}, options);
  log2_N_ = at::full({num_blocks}, kStart, options);
  since_division_N_ = at::full({num_blocks}, kUpdatesBetweenDivisions, options);
  compute_scales();
}

void ResblockScaling::compute_scales() {
  const Tensor powers = at::exp2(log2_N_.to(at::kDouble) / 1000.0);
  scales_N_ = (powers * static_cast<double>(num_replicas_)).to(at::kFloat);
}

Tensor ResblockScaling::log2_scales() const {
  return log2_N_.to(at::kDouble) / 1000.0 + std::log2(static_cast<double>(num_replicas_));
}

void ResblockScaling::for_gradients(const std::function<void(int64_t, const Tensor&)>& see) const {
  const c10::NoGradGuard no_grad;
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const Tensor& gradient = parameters_[i].parameter->tensor.grad();
    if (gradient.defined() && gradient.numel() > 0) see(blocks_[i], gradient);
  }
}

void ResblockScaling::clear(const Tensor& finite_N) const {
  const Tensor bad_N = finite_N.logical_not();
  for_gradients([&](int64_t block, const Tensor& gradient) { gradient.masked_fill_(bad_N[block], 0); });
}

Tensor ResblockScaling::is_finite(int64_t block) const {
  const c10::NoGradGuard no_grad;
  std::vector<Tensor> gradients;
  for_gradients([&](int64_t of, const Tensor& gradient) {
    if (of == block) gradients.push_back(gradient);
  });
  if (gradients.empty()) return at::ones({}, log2_N_.options().dtype(at::kBool));
  return at::stack(at::_foreach_norm(gradients, std::numeric_limits<double>::infinity())).isfinite().all();
}

Tensor ResblockScaling::unscale() {
  const c10::NoGradGuard no_grad;
  std::vector<Tensor> gradients;
  std::vector<int64_t> blocks;
  for_gradients([&](int64_t block, const Tensor& gradient) {
    gradient.div_(scales_N_[block]);
    gradients.push_back(gradient);
    blocks.push_back(block);
  });
  if (gradients.empty()) return at::ones_like(log2_N_, at::kBool);
  const Tensor largest = at::stack(at::_foreach_norm(gradients, std::numeric_limits<double>::infinity()));
  const Tensor bad = largest.isfinite().logical_not().to(at::kLong);
  if (blocks != seen_blocks_) {  // once: to copy it waits for the device
    seen_index_ = at::tensor(blocks, at::kLong).to(bad.device());
    seen_blocks_ = std::move(blocks);
  }
  return at::zeros_like(log2_N_).index_add(0, seen_index_, bad).eq(0);
}

void ResblockScaling::update(const Tensor& finite_N, const Tensor& skip) {
  const c10::NoGradGuard no_grad;
  const Tensor divides = finite_N.logical_not().logical_and(since_division_N_.ge(kUpdatesBetweenDivisions));
  const Tensor change = finite_N.to(at::kLong) * kGrowth - divides.to(at::kLong) * kDivision;
  // Updates since the last division, this one included: 1 for the division's own.
  const Tensor since = (since_division_N_ * divides.logical_not() + 1).clamp_max(kUpdatesBetweenDivisions);
  const Tensor counts = skip.defined() ? skip.eq(0) : at::ones({}, finite_N.options());
  log2_N_ = at::where(counts, (log2_N_ + change).clamp(kLowest, kHighest), log2_N_);
  since_division_N_ = at::where(counts, since, since_division_N_);
  overflows_ = overflows_ + finite_N.all().logical_not().logical_and(counts).to(at::kLong);
  compute_scales();
}

std::vector<storage::NamedTensor> ResblockScaling::state() const {
  return {{kLog2, log2_N_.clone()}, {kSinceDivision, since_division_N_.clone()}, {kOverflows, overflows_.clone()}};
}

bool ResblockScaling::is_state(const std::string& name) { return name.starts_with(kPrefix); }

void ResblockScaling::load_state(const std::vector<storage::NamedTensor>& state) {
  std::vector<Tensor> loaded;
  for (const auto& [name, own] : this->state()) {
    const Tensor* tensor = storage::find_tensor(state, name);
    if (tensor == nullptr || tensor->sizes() != own.sizes()) {
      throw CheckpointError(Problem{.place = "state of gradient scales",
                                    .expected = dalle::str("'", name, "' of ", num_blocks(), " resblocks"),
                                    .got = tensor == nullptr ? "none" : dalle::str("shape ", tensor->sizes()),
                                    .hint = "it belongs to another model"});
    }
    loaded.push_back(tensor->to(log2_N_.options(), /*non_blocking=*/false, /*copy=*/true));
  }
  log2_N_ = loaded[0];
  since_division_N_ = loaded[1];
  overflows_ = loaded[2];
  compute_scales();
}

}  // namespace dalle::optim

#include "dalle/optim/adamw.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <map>
#include <set>

#include "dalle/core/error.h"
#include "dalle/core/str.h"
#include "dalle/optim/parameter_groups.h"
#include "dalle/optim/sixteen_bit_moments.h"

namespace dalle::optim {
namespace {

const Tensor* find_with_shape(const std::vector<storage::NamedTensor>& state, const std::string& name,
                              at::IntArrayRef shape) {
  const Tensor* tensor = storage::find_tensor(state, name);
  if (tensor == nullptr) return nullptr;
  if (tensor->sizes() != shape) {
    throw CheckpointError(Problem{.place = dalle::str("optimizer state '", name, "'"),
                                  .expected = dalle::str("shape ", shape),
                                  .got = dalle::str(tensor->sizes())});
  }
  return tensor;
}

const Tensor& require_with_shape(const std::vector<storage::NamedTensor>& state, const std::string& name,
                                 at::IntArrayRef shape) {
  const Tensor* tensor = find_with_shape(state, name, shape);
  if (tensor == nullptr) {
    throw CheckpointError(Problem{.place = "optimizer state", .expected = dalle::str("'", name, "'"), .got = "none"});
  }
  return *tensor;
}

/// A moment of the type that is wanted: 16-bit floats are not numbers to be converted from or to.
const Tensor& require_moment(const std::vector<storage::NamedTensor>& state, const std::string& name,
                             const Tensor& like) {
  const Tensor& moment = require_with_shape(state, name, like.sizes());
  const bool is_small = moment.scalar_type() == at::kShort, wants_small = like.scalar_type() == at::kShort;
  if (is_small == wants_small) return moment;
  throw CheckpointError(
      Problem{.place = dalle::str("optimizer state '", name, "'"),
              .expected = wants_small ? "moments of 16 bits" : "moments of 32 bits",
              .got = is_small ? "16" : "32",
              .hint = dalle::str("they were written with optimizer.moments: ", is_small ? "f16" : "f32")});
}

/// The fused kernel walks memory, so a gradient must be laid out as its parameter. Strides of extents of 1 do not matter.
Tensor laid_out_as(const Tensor& gradient, const Tensor& parameter) {
  for (int64_t d = 0; d < parameter.dim(); ++d) {
    if (parameter.size(d) != 1 && gradient.stride(d) != parameter.stride(d)) {
      return at::empty_like(parameter).copy_(gradient);
    }
  }
  return gradient;
}

/// The numbers in the order of memory. The fused kernel would copy what is not contiguous, in and out.
Tensor flat(const Tensor& tensor) {
  if (tensor.is_contiguous()) return tensor;
  return tensor.is_non_overlapping_and_dense() ? tensor.as_strided({tensor.numel()}, {1}) : tensor;
}

}  // namespace

void AdamWConfig::validate(const std::string& place) const {
  for (const double beta : {beta1, beta2}) {
    if (beta >= 0 && beta < 1) continue;
    throw ConfigError(Problem{.place = place, .expected = "beta1 and beta2 at least 0 and below 1", .got = str(beta)});
  }
}

AdamW::AdamW(std::vector<layers::NamedParameter> parameters, const AdamWConfig& config) : config_(config) {
  config.validate("AdamW");
  const auto device = parameters.empty() ? at::Device(at::kCPU) : parameters.front().parameter->tensor.device();
  steps_ = at::zeros({}, at::TensorOptions(at::kLong).device(device));
  for (auto& parameter : parameters) {
    const bool is_small = config.moments == Moments::kF16 && is_resblock_matrix(parameter);
    slots_.push_back({.parameter = std::move(parameter), .has_small_moments = is_small});
  }
}

int64_t AdamW::steps() const { return steps_.item<int64_t>(); }

void AdamW::allocate(Slot& slot) const {
  const Tensor like = slot.parameter.parameter->tensor.detach();
  const auto options = like.options().dtype(slot.has_small_moments ? at::kShort : like.scalar_type());
  slot.exp_avg = at::zeros_like(like, options);  // no bits set is 0 in all formats
  slot.exp_avg_sq = at::zeros_like(like, options);
  slot.step = at::zeros({}, like.options().dtype(at::kFloat));
}

void AdamW::update(const std::vector<Slot*>& slots, double weight_decay, double lr, const Tensor& skip) {
  std::vector<Tensor> weights, gradients, means, squares, steps;
  for (Slot* slot : slots) {
    if (!slot->exp_avg.defined()) allocate(*slot);
    if (slot->has_small_moments) {
      update_small(*slot, lr, skip);
      continue;
    }
    const Tensor& weight = slot->parameter.parameter->tensor;
    weights.push_back(flat(weight));
    gradients.push_back(flat(laid_out_as(weight.grad(), weight)));
    means.push_back(flat(slot->exp_avg));
    squares.push_back(flat(slot->exp_avg_sq));
    steps.push_back(slot->step);
  }
  if (weights.empty()) return;
  // The kernel returns before it writes anything where found_inf is 1; the counts are the caller's.
  if (skip.defined()) {
    at::_foreach_add_(steps, 1 - skip);
  } else if (steps.front().is_cpu()) {  // without an operator's overhead for each number
    for (const Tensor& step : steps) ++*step.mutable_data_ptr<float>();
  } else {
    at::_foreach_add_(steps, 1);
  }
  at::_fused_adamw_(weights, gradients, means, squares, {}, steps, lr, config_.beta1, config_.beta2, weight_decay,
                    config_.eps, /*amsgrad=*/false, /*maximize=*/false, /*grad_scale=*/{},
                    skip.defined() ? std::optional(skip) : std::nullopt);
}

void AdamW::update_small(Slot& slot, double lr, const Tensor& skip) {
  const Tensor weight = slot.parameter.parameter->tensor.detach();
  const Tensor gradient = laid_out_as(slot.parameter.parameter->tensor.grad(), weight);
  slot.step += skip.defined() ? 1 - skip : at::ones_like(slot.step);
  adamw_with_sixteen_bit_moments(weight, gradient, slot.exp_avg, slot.exp_avg_sq, slot.step,
                                 {.lr = lr,
                                  .beta1 = config_.beta1,
                                  .beta2 = config_.beta2,
                                  .eps = config_.eps,
                                  .weight_decay = slot.parameter.parameter->decays ? config_.weight_decay : 0},
                                 skip);
}

void AdamW::step(double lr, const Tensor& skip, const std::vector<Tensor>& skip_P) {
  TORCH_CHECK_VALUE(skip_P.empty() || skip_P.size() == slots_.size(), "[adamw] flags for ", skip_P.size(), " of ",
                    slots_.size(), " parameters");
  const c10::NoGradGuard no_grad;
  steps_.add_(skip.defined() ? (1 - skip).to(at::kLong) : at::ones_like(steps_));
  struct Group {
    Tensor skip;
    std::vector<Slot*> slots[2];  // without decay, with it
  };
  std::vector<Group> groups;
  std::map<const void*, size_t> group_of_flag;
  for (size_t i = 0; i < slots_.size(); ++i) {
    const layers::Parameter& parameter = *slots_[i].parameter.parameter;
    if (!parameter.tensor.grad().defined()) continue;
    const Tensor& flag = skip_P.empty() ? skip : skip_P[i];
    const auto [found, is_new] = group_of_flag.try_emplace(flag.unsafeGetTensorImpl(), groups.size());
    if (is_new) groups.push_back({.skip = flag, .slots = {}});
    groups[found->second].slots[parameter.decays ? 1 : 0].push_back(&slots_[i]);
  }
  for (const auto& group : groups) {
    update(group.slots[1], config_.weight_decay, lr, group.skip);
    update(group.slots[0], 0, lr, group.skip);
  }
}

void AdamW::zero_grad() {
  for (auto& slot : slots_) slot.parameter.parameter->tensor.mutable_grad().reset();
}

std::vector<storage::NamedTensor> AdamW::state() const {
  std::vector<storage::NamedTensor> state{{"steps", steps_.clone()}};
  for (const auto& slot : slots_) {
    if (!slot.exp_avg.defined()) continue;
    const std::string& name = slot.parameter.name;
    state.push_back({name + ".exp_avg", slot.exp_avg});
    state.push_back({name + ".exp_avg_sq", slot.exp_avg_sq});
    state.push_back({name + ".step", slot.step.to(at::kLong)});
  }
  return state;
}

void AdamW::load_state(const std::vector<storage::NamedTensor>& state) {
  const c10::NoGradGuard no_grad;
  const Tensor steps =
      require_with_shape(state, "steps", {}).to(steps_.options(), /*non_blocking=*/false, /*copy=*/true);
  std::vector<Slot> loaded = slots_;
  std::set<std::string> used{"steps"};
  for (auto& slot : loaded) {
    slot.exp_avg = slot.exp_avg_sq = slot.step = Tensor();
    const std::string& name = slot.parameter.name;
    const auto shape = slot.parameter.parameter->tensor.sizes();
    if (find_with_shape(state, name + ".exp_avg", shape) == nullptr) continue;
    allocate(slot);
    slot.exp_avg.copy_(require_moment(state, name + ".exp_avg", slot.exp_avg));
    slot.exp_avg_sq.copy_(require_moment(state, name + ".exp_avg_sq", slot.exp_avg_sq));
    slot.step.copy_(require_with_shape(state, name + ".step", {}));
    used.insert({name + ".exp_avg", name + ".exp_avg_sq", name + ".step"});
  }
  for (const auto& entry : state) {
    if (used.contains(entry.name)) continue;
    throw CheckpointError(Problem{.place = "optimizer state",
                                  .expected = "state of the model's parameters",
                                  .got = str("'", entry.name, "'"),
                                  .hint = "it belongs to another model"});
  }
  slots_ = std::move(loaded);
  steps_ = steps;
}

}  // namespace dalle::optim

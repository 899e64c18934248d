#include "dalle/optim/ema.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "dalle/core/error.h"
#include "dalle/core/str.h"

namespace dalle::optim {

Ema::Ema(std::vector<layers::NamedParameter> parameters, double decay, int64_t every)
    : parameters_(std::move(parameters)), decay_(decay), every_(every) {
  TORCH_CHECK_VALUE(decay >= 0 && decay < 1, "[ema] decay must be in [0, 1), got ", decay);
  TORCH_CHECK_VALUE(every >= 1, "[ema] every must be at least 1, got ", every);
  for (const auto& [name, parameter] : parameters_) averages_.push_back(parameter->tensor.detach().clone());
}

void Ema::update(int64_t step, const Tensor& skip) {
  TORCH_INTERNAL_ASSERT(!swapped_, "EMA update while the model holds the averages");
  if (step % every_ != 0) return;
  const c10::NoGradGuard no_grad;
  std::vector<Tensor> weights;
  for (const auto& [name, parameter] : parameters_) weights.push_back(parameter->tensor.detach());
  if (!skip.defined()) return at::_foreach_lerp_(averages_, weights, 1 - decay_);
  const Tensor rate = (1 - skip) * (1 - decay_);  // the foreach operation takes numbers of the host only
  for (size_t i = 0; i < averages_.size(); ++i) averages_[i].lerp_(weights[i], rate.to(averages_[i].scalar_type()));
}

std::vector<storage::NamedTensor> Ema::tensors() const {
  TORCH_INTERNAL_ASSERT(!swapped_, "EMA read while the model holds the averages");
  std::vector<storage::NamedTensor> tensors;
  for (size_t i = 0; i < averages_.size(); ++i) tensors.push_back({parameters_[i].name, averages_[i]});
  return tensors;
}

void Ema::load(const std::vector<storage::NamedTensor>& tensors) {
  TORCH_INTERNAL_ASSERT(!swapped_, "EMA load while the model holds the averages");
  auto fail = [](const std::string& expected, const std::string& got) {
    throw CheckpointError(
        Problem{.place = "EMA weights", .expected = expected, .got = got, .hint = "they belong to another model"});
  };
  std::vector<const Tensor*> sources;
  for (size_t i = 0; i < averages_.size(); ++i) {
    const Tensor* source = storage::find_tensor(tensors, parameters_[i].name);
    if (source == nullptr) {
      fail(dalle::str("'", parameters_[i].name, "'"), "none");
    } else if (source->sizes() != averages_[i].sizes()) {
      fail(dalle::str("'", parameters_[i].name, "' of shape ", averages_[i].sizes()), dalle::str(source->sizes()));
    }
    sources.push_back(source);
  }
  if (tensors.size() != averages_.size()) {
    fail(dalle::str(averages_.size(), " tensors"), dalle::str(tensors.size()));
  }
  const c10::NoGradGuard no_grad;
  for (size_t i = 0; i < averages_.size(); ++i) averages_[i].copy_(*sources[i]);
}

void Ema::swap() {
  swapped_ = !swapped_;
  for (size_t i = 0; i < averages_.size(); ++i) std::swap(parameters_[i].parameter->tensor, averages_[i]);
}

EmaScope::EmaScope(Ema& ema) : ema_(ema) {
  TORCH_INTERNAL_ASSERT(!ema.swapped_, "nested EmaScope");
  ema_.swap();
}

EmaScope::~EmaScope() { ema_.swap(); }

}  // namespace dalle::optim

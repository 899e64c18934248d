#include "dalle/distributed/gradient_watch.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

namespace dalle::distributed {
namespace {

struct GradientHook : torch::autograd::PostAccumulateGradHook {
  explicit GradientHook(std::function<void()> function) : function(std::move(function)) {}
  void operator()(const torch::autograd::Variable& /*tensor*/) override { function(); }
  std::function<void()> function;
};

struct WatchedGradient {
  Tensor parameter;
  int64_t expected = 0;  // times that backward adds to it
  int64_t seen = 0;      // of them in this pass
  int64_t place = -1;
};

}  // namespace

struct GradientWatch::State {
  void on_gradient(size_t index) {
    if (!is_armed) return;
    WatchedGradient& gradient = gradients[index];
    ++gradient.seen;
    if (!has_learned) {
      gradient.place = num_seen++;
      return;
    }
    TORCH_CHECK(gradient.seen <= gradient.expected,
                "[gradient watch] a backward pass that is not the first one's: parameter ", index, " of shape ",
                gradient.parameter.sizes(), " was given a gradient ", gradient.seen, " times, at first ",
                gradient.expected);
    if (gradient.seen == gradient.expected) completed(index);
  }

  std::vector<WatchedGradient> gradients;
  std::function<void(size_t)> completed;
  bool is_armed = false, has_learned = false;
  int64_t num_seen = 0;  // of the watched pass
};

GradientWatch::GradientWatch(std::vector<Tensor> parameters, std::function<void(size_t)> completed)
    : state_(std::make_unique<State>()) {
  state_->completed = std::move(completed);
  for (Tensor& parameter : parameters) {
    const size_t index = state_->gradients.size();
    torch::autograd::impl::set_post_acc_grad_hooks(
        parameter, std::make_unique<GradientHook>([state = state_.get(), index] { state->on_gradient(index); }));
    state_->gradients.push_back({.parameter = std::move(parameter)});
  }
}

GradientWatch::~GradientWatch() {
  for (const auto& gradient : state_->gradients) {
    torch::autograd::impl::set_post_acc_grad_hooks(gradient.parameter, nullptr);
  }
}

void GradientWatch::arm() {
  state_->is_armed = true;
  for (auto& gradient : state_->gradients) gradient.seen = 0;
}

void GradientWatch::disarm() {
  if (!state_->is_armed) return;
  state_->is_armed = false;
  if (!state_->has_learned) {
    for (auto& gradient : state_->gradients) gradient.expected = gradient.seen;
  }
  state_->has_learned = true;
}

bool GradientWatch::is_armed() const { return state_->is_armed; }
bool GradientWatch::has_gradient(size_t parameter) const { return state_->gradients.at(parameter).expected > 0; }
int64_t GradientWatch::place(size_t parameter) const { return state_->gradients.at(parameter).place; }

}  // namespace dalle::distributed

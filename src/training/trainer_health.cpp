// The loop's watch over its own numbers: losses and gradients that are not finite, and the stage's health rules.
#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "dalle/core/error.h"
#include "dalle/core/logging.h"
#include "dalle/core/str.h"
#include "dalle/training/trainer.h"

namespace dalle::training {
namespace {

bool all_finite(const Tensor& values) { return at::isfinite(values).all().item<bool>(); }

std::string number_text(double value) {
  if (std::isfinite(value)) return str(value);
  return std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";  // a NaN may print its sign
}

// "a, b, c and 4 more" of at most `shown` names.
std::string listed(const std::vector<std::string>& names, size_t shown) {
  std::string text;
  for (size_t i = 0; i < names.size() && i < shown; ++i) text += (i == 0 ? "" : ", ") + names[i];
  return names.size() > shown ? str(text, " and ", names.size() - shown, " more") : text;
}

}  // namespace

std::string Trainer::nonfinite_report(const std::vector<PreparedBatch>& batches) const {
  std::vector<std::string> losses, gradients, keys;
  for (const auto& [name, value] : step_metrics_) {
    if (!all_finite(value)) losses.push_back(str(name, " = ", number_text(value.item<double>())));
  }
  size_t num_gradients = 0;
  for (const auto& [name, parameter] : parameters_) {
    const Tensor& gradient = parameter->tensor.grad();
    if (!gradient.defined()) continue;
    ++num_gradients;
    if (!all_finite(gradient)) gradients.push_back(name);
  }
  // Pictures of the micro-batches with a bad loss; where all losses are finite, any may have the bad gradient.
  const bool any_bad =
      std::any_of(micro_losses_.begin(), micro_losses_.end(), [](const Tensor& l) { return !all_finite(l); });
  for (size_t i = 0; i < batches.size(); ++i) {
    if (any_bad && all_finite(micro_losses_[i])) continue;
    keys.insert(keys.end(), batches[i].batch.keys.begin(), batches[i].batch.keys.end());
  }
  std::string report = losses.empty() ? "the loss is finite" : "not finite: " + listed(losses, 4);
  report += str("; gradients of ", gradients.size(), " of ", num_gradients, " parameters");
  if (!gradients.empty()) report += str(" (", listed(gradients, 3), ")");
  return str(report, " are not finite; batch: ", listed(keys, 8));
}

bool Trainer::check_finite(const std::vector<PreparedBatch>& batches, const Tensor& norm) {
  // The decision to skip is the host's: two numbers a step, read when the whole backward pass is done anyway.
  if (std::isfinite(norm.item<double>()) && std::isfinite(step_metrics_.front().second.item<double>())) {
    nonfinite_in_row_ = 0;
    return true;
  }
  ++nonfinite_in_row_;
  ++nonfinite_total_;
  const bool ends = nonfinite_in_row_ >= setup_.trainer.max_nonfinite_steps;
  const std::string hint =
      "lower learning_rate, set trainer.clip_norm, or use precision: f32; look at the batch's pictures";
  if (!ends && !health_.may_warn("nonfinite", step_)) return false;
  const std::string report = nonfinite_report(batches);
  raise({.alarm = "nonfinite",
         .message = str("step ", step_, ": this update is skipped (", nonfinite_in_row_, " in a row, ",
                        nonfinite_total_, " in all): ", report, "\n  hint: ", hint),
         .values = {{"skipped_updates", static_cast<double>(nonfinite_total_)}}});
  if (!ends) return false;
  status_->finish();
  save();
  throw Error(Problem{
      str("step ", step_), "",
      str(nonfinite_in_row_, " updates in a row had a loss or gradient that was not finite; the last: ", report),
      hint + "; the state before is saved"});
}

void Trainer::raise(const HealthEvent& event) {
  log_warning(event.message);
  if (communicator_.rank() == 0) metrics_->event(step_, event.alarm, event.message, event.values);
}

void Trainer::write_line(const std::string& phase, const NamedValues& values) {
  metrics_->log(step_, phase, values);
  for (const auto& event : health_.observe(step_, phase, values)) raise(event);
}

}  // namespace dalle::training

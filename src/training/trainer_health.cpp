// The loop's watch over its own numbers: losses and gradients that are not finite, and the stage's health rules.
#include "dalle/core/error.h"
#include "dalle/core/logging.h"
#include "dalle/core/str.h"
#include "dalle/training/trainer.h"

namespace dalle::training {

UpdateNumbers Trainer::update_numbers(const std::vector<PreparedBatch>& batches, optim::GradientNorms gradients) const {
  UpdateNumbers numbers{.step = step_,
                        .losses = step_metrics_,
                        .micro_losses = micro_losses_,
                        .keys = {},
                        .gradients = std::move(gradients)};
  for (const auto& batch : batches) numbers.keys.push_back(batch.batch.keys);
  return numbers;
}

void Trainer::settle_updates() {
  while (const auto skipped = finite_check_.next_before(step_)) report_skipped(*skipped);
}

void Trainer::report_skipped(const SkippedUpdate& skipped) {
  const bool ends = skipped.in_row >= setup_.trainer.max_nonfinite_steps;
  if (!health_.may_warn("nonfinite", skipped.step) && !ends) return;
  const std::string hint =
      scaling_ ? "gradients of resblocks that overflow are no reason, the scales see to them, but activations of fp16 "
                 "must stay below 65,504: set model.sandwich_norm, lower learning_rate, or use precision: bf16 or f32"
               : "lower learning_rate, set trainer.clip_norm, or use precision: f32; look at the batch's pictures";
  const std::string report = skipped.report();
  // Of other ranks those speak that know a sample to look at.
  if (is_first_rank() || skipped.has_bad_micro_batch())
    raise(skipped.step, {.alarm = "nonfinite",
                         .message = str("step ", skipped.step, ": this update is skipped (", skipped.in_row,
                                        " in a row, ", skipped.total, " in all): ", report, "\n  hint: ", hint),
                         .values = {{"skipped_updates", static_cast<double>(skipped.total)}}});
  if (!ends) return;
  while (finite_check_.next_before(step_)) {
    // Updates done since, skipped or not: only their count is still wanted.
  }
  if (status_) status_->finish();
  write_checkpoint();
  settle_checkpoint();
  throw Error(
      Problem{str("step ", skipped.step), "",
              str(skipped.in_row, " updates in a row had a loss or gradient that was not finite; the last: ", report),
              hint + "; the state before is saved"});
}

void Trainer::raise(int64_t step, const HealthEvent& event) {
  log_warning(event.message);
  if (is_first_rank()) metrics_->event(step, event.alarm, event.message, event.values);
}

void Trainer::write_line(const std::string& phase, const NamedValues& values) {
  metrics_->log(step_, phase, values);
  for (const auto& event : health_.observe(step_, phase, values)) raise(step_, event);
}

}  // namespace dalle::training

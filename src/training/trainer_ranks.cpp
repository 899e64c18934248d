// What the loop shares with other ranks: counts, losses, signals, and the proof that all hold the same state.
#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "dalle/core/error.h"
#include "dalle/core/logging.h"
#include "dalle/core/signals.h"
#include "dalle/core/str.h"
#include "dalle/distributed/agreement.h"
#include "dalle/models/load.h"
#include "dalle/training/trainer.h"

namespace dalle::training {

void Trainer::note(const std::string& place, distributed::Pace pace) {
  communicator_.note(str("step ", step_, ", ", place), pace);
}

// One sum of a few numbers on the host: beside the losses' counts it carries all else that a step has to agree on.
void Trainer::agree_on_step(const std::vector<PreparedBatch>& batches, StepContext& context) {
  note("counting the batch");
  if (!parts_under_way_ && writer_.is_done()) writer_.finish();  // throws what has failed
  const bool is_repeated = setup_.trainer.overfit_one_batch && num_captions_ > 0;
  double captions = 0, truncated = 0;
  for (const auto& [batch, pixels, tokens, num_text_targets] : batches) {
    if (is_repeated || !batch.caption_ids.defined()) continue;
    captions += static_cast<double>(batch.caption_ids.size(0));
    truncated += static_cast<double>(batch.num_truncated);
  }
  std::vector<double> numbers{captions, truncated, static_cast<double>(loader_->bad_samples()),
                              stop_requested() ? 1.0 : 0.0, writer_.is_done() ? 1.0 : 0.0};
  const size_t first_count = numbers.size();
  for (const auto& batch : batches) {
    const auto counts = task_.counts(batch);
    numbers.resize(first_count + counts.size(), 0.0);
    for (size_t i = 0; i < counts.size(); ++i) numbers[first_count + i] += counts[i];
  }
  if (communicator_.world_size() > 1) {
    Tensor sums = at::tensor(numbers, at::kDouble);
    communicator_.all_reduce_sum(sums);
    const double* values = sums.const_data_ptr<double>();
    numbers.assign(values, values + sums.numel());
  }
  if (num_truncated_captions_ == 0 && numbers[1] > 0) {
    log_info(
        "some captions are longer than the model's text context and are cut; truncated_captions in metrics.jsonl "
        "counts them");
  }
  num_captions_ += static_cast<int64_t>(numbers[0]);
  num_truncated_captions_ += static_cast<int64_t>(numbers[1]);
  num_bad_samples_ = static_cast<int64_t>(numbers[2]);
  stop_agreed_ = numbers[3] > 0;
  if (parts_under_way_ && static_cast<int>(numbers[4]) == communicator_.world_size()) join_checkpoint_parts();
  context.totals.assign(numbers.begin() + static_cast<int64_t>(first_count), numbers.end());
}

// Several ranks stop after the step that carried the news to all of them.
bool Trainer::must_stop() const { return communicator_.world_size() == 1 ? stop_requested() : stop_agreed_; }

void Trainer::reduce_losses() {
  if (communicator_.world_size() == 1) return;
  const c10::NoGradGuard no_grad;
  std::vector<Tensor> losses;
  for (const auto& [name, value] : step_metrics_) losses.push_back(value.to(at::kDouble));
  Tensor sums = at::stack(losses);
  communicator_.all_reduce_sum(sums);
  for (size_t i = 0; i < losses.size(); ++i) step_metrics_[i].second = sums[static_cast<int64_t>(i)];
}

void Trainer::require_same_state() {
  if (communicator_.world_size() == 1) return;
  const auto hash_of = [](const std::vector<storage::NamedTensor>& tensors) {
    return models::identity_of(/*model_config_yaml=*/"", tensors);
  };
  const std::string hint = "ranks must run the same program on the same data and read the same checkpoint";
  const auto weights = [&] {
    std::vector<storage::NamedTensor> tensors;
    for (const auto& [name, parameter] : sharded_ ? sharded_->parts() : parameters_) {
      tensors.push_back({name, parameter->tensor});
    }
    return hash_of(tensors);
  };
  // What ranks split is the same in every replica.
  distributed::Communicator& same = sharded_ ? sharded_->replicas() : communicator_;
  if (const auto difference = distributed::find_difference(communicator_, {{"step", str(step_), hint}})) {
    throw Error(*difference);
  }
  if (same.world_size() == 1) return;
  const auto difference =
      distributed::find_difference(same, {{"weights", weights(), hint},
                                          {"averaged weights", ema_ ? hash_of(ema_->tensors()) : "none", hint},
                                          {"optimizer state", hash_of(optimizer_.state()), hint},
                                          {"gradient scales", scaling_ ? hash_of(scaling_->state()) : "none", hint}});
  if (difference) throw Error(*difference);
}

}  // namespace dalle::training

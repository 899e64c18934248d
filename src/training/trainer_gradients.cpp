// What stands between the backward passes and the optimizer: scales of resblocks, sums over ranks, plain or compressed.
#include <ATen/ATen.h>

#include "dalle/core/error.h"
#include "dalle/core/logging.h"
#include "dalle/training/trainer.h"

namespace dalle::training {

void Trainer::set_up_gradients() {
  const auto& compression = setup_.trainer.gradient_compression;
  if (compression.enabled) {
    compression_ = std::make_unique<GradientCompression>(
        sharded_ ? sharded_->leave_replicas() : whole_gradients(parameters_, communicator_), compression,
        static_cast<uint64_t>(setup_.trainer.seed));
    if (sharded_) sharded_->when_complete([this](int64_t block) { compression_->complete(block); });
  } else if (communicator_.world_size() > 1 && !sharded_) {
    std::vector<Tensor> weights;
    for (const auto& [name, parameter] : parameters_) weights.push_back(parameter->tensor);
    reducer_ = std::make_unique<distributed::GradientReducer>(std::move(weights), communicator_);
  }
  if (setup_.trainer.activation_checkpointing) runner_ = &checkpoint_runner_;
  if (task_.needs_gradient_scaling()) {
    // Sums that several ranks hold are counted once; what is not summed yet, on every rank.
    const bool holds_sums_first = sharded_ ? sharded_->is_first_group() : is_first_rank();
    scaling_ = std::make_unique<GradientScaling>(
        parameters_, trained(), communicator_,
        GradientScalingOptions{.skips_whole_updates = compression.enabled,
                               .counts_parameters = compression.enabled || holds_sums_first});
    runner_ = &scaling_->around(*runner_);
    if (compression_) compression_->divide_by([this](int64_t block) { return scaling_->take(block); });
  } else if (setup_.trainer.exponent_histogram_interval_steps > 0) {
    throw ConfigError(Problem{"trainer.exponent_histogram_interval_steps", "0, or precision: fp16",
                              std::to_string(setup_.trainer.exponent_histogram_interval_steps),
                              "the histograms are of gradients as the scales of fp16 make them"});
  }
  if (sharded_) {
    sharded_->set_inner(*runner_);
    runner_ = sharded_.get();
  }
}

std::optional<Tensor> Trainer::finish_gradients() {
  if (reducer_) reducer_->finish();
  std::optional<Tensor> norm;
  if (compression_) norm = compression_->reduce();
  if (scaling_) scaling_->unscale();
  if (norm && scaling_) norm = scaling_->without_overflow(*norm);
  return norm;
}

std::vector<storage::TensorPiece> Trainer::gradient_state() const {
  std::vector<storage::TensorPiece> pieces;
  if (compression_) pieces = compression_->state();
  const bool writes_whole = !sharded_ || sharded_->part() == 0;
  if (!scaling_ || !writes_whole) return pieces;
  for (const auto& [name, tensor] : scaling_->state()) {
    pieces.push_back({.name = name, .shape = tensor.sizes().vec(), .values = tensor.flatten()});
  }
  return pieces;
}

void Trainer::load_gradient_state(std::vector<storage::NamedTensor>& state) {
  std::vector<storage::NamedTensor> scales;
  std::erase_if(state, [&](const auto& entry) {
    if (!optim::ResblockScaling::is_state(entry.name)) return false;
    scales.push_back(entry);
    return true;
  });
  load_scales(scales);
  if (compression_) compression_->load_state(state);
}

void Trainer::load_scales(const std::vector<storage::NamedTensor>& state) {
  if (!scaling_) return;
  if (state.empty()) {
    log_info("the checkpoint was not trained in fp16: gradient scales start anew");
  } else {
    scaling_->load_state(state);
  }
}

}  // namespace dalle::training

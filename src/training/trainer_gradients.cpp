// What stands between the backward passes and the optimizer: sums over ranks, plain or compressed.
#include <ATen/ATen.h>

#include "dalle/training/trainer.h"

namespace dalle::training {

void Trainer::set_up_gradients() {
  const auto& compression = setup_.trainer.gradient_compression;
  if (compression.enabled) {
    compression_ = std::make_unique<GradientCompression>(
        sharded_ ? sharded_->leave_replicas() : whole_gradients(parameters_, communicator_), compression,
        static_cast<uint64_t>(setup_.trainer.seed));
  } else if (communicator_.world_size() > 1 && !sharded_) {
    std::vector<Tensor> weights;
    for (const auto& [name, parameter] : parameters_) weights.push_back(parameter->tensor);
    reducer_ = std::make_unique<distributed::GradientReducer>(std::move(weights), communicator_);
  }
}

std::optional<Tensor> Trainer::finish_gradients() {
  if (reducer_) reducer_->finish();
  if (!compression_) return std::nullopt;
  return compression_->reduce();
}

std::vector<storage::TensorPiece> Trainer::gradient_state() const {
  if (!compression_) return {};
  return compression_->state();
}

void Trainer::load_gradient_state(std::vector<storage::NamedTensor>& state) {
  if (compression_) compression_->load_state(state);
}

}  // namespace dalle::training

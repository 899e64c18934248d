#include "dalle/training/checkpoint_writer.h"

#include <ATen/ATen.h>

#include <chrono>
#include <utility>

namespace dalle::training {
namespace {

Tensor host_copy(const Tensor& tensor) {
  return tensor.detach().to(at::kCPU, tensor.scalar_type(), false, /*copy=*/true);
}

}  // namespace

CheckpointWriter::~CheckpointWriter() {
  if (has_work()) result_.wait();
}

void CheckpointWriter::start(Write write) {
  TORCH_INTERNAL_ASSERT(!has_work(), "a checkpoint is being written already");
  result_ = std::async(std::launch::async, std::move(write));
}

bool CheckpointWriter::is_done() const {
  return !has_work() || result_.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
}

std::string CheckpointWriter::finish() { return has_work() ? result_.get() : std::string(); }

std::vector<storage::NamedTensor> copied_to_host(std::vector<storage::NamedTensor> tensors) {
  for (auto& entry : tensors) entry.tensor = host_copy(entry.tensor);
  return tensors;
}

std::vector<storage::TensorPiece> copied_to_host(std::vector<storage::TensorPiece> pieces) {
  for (auto& piece : pieces) piece.values = host_copy(piece.values);
  return pieces;
}

}  // namespace dalle::training

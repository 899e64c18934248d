// How processes of one run talk. Without a launcher there is one process and every operation is free, so no caller has a
// branch for it. Each rank must make the same calls in the same order.
#pragma once

#include <chrono>
#include <memory>

#include "dalle/core/tensor.h"

namespace dalle::distributed {

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int world_size() const = 0;

  /// Replaces the values on every rank by their sum over ranks. Same shape and type everywhere; layouts may differ.
  virtual void all_reduce_sum(Tensor& tensor) = 0;
  /// Replaces the values on every rank by those of rank `root`.
  virtual void broadcast(Tensor& tensor, int root) = 0;
  /// The ranks' tensors joined along dim 0, in rank order: [n, ...] -> [world_size * n, ...]; a scalar counts as [1].
  virtual Tensor all_gather(const Tensor& tensor) = 0;
  /// Returns once every rank has called it.
  virtual void barrier() = 0;
};

/// One process: rank 0 of 1.
std::unique_ptr<Communicator> make_singleton();

/// Joins the group that RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT describe (torchrun sets them; rank 0 listens on
/// that port): Gloo where `device` is the CPU, else NCCL on that GPU. The singleton where WORLD_SIZE is not set or 1.
/// Throws ConfigError for variables that are missing or make no sense and for a GPU in a build without NCCL, and
/// c10::Error where the others do not come, or do not answer a later call, within `timeout`.
std::unique_ptr<Communicator> init(at::Device device, std::chrono::seconds timeout = std::chrono::minutes(10));

}  // namespace dalle::distributed

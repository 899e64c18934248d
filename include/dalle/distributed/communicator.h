// How processes of one run talk. Without a launcher there is one process and every operation is free, so no caller has a
// branch for it. Each rank must make the same calls in the same order.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <vector>

#include "dalle/core/tensor.h"

namespace dalle::distributed {

/// An operation under way. Until wait() has returned its tensors belong to it.
class Pending {
 public:
  Pending() = default;  // done already
  explicit Pending(std::function<void()> wait) : wait_(std::move(wait)) {}

  /// Returns once the result is there; on a GPU, once what is queued from now on will find it there. Throws c10::Error
  /// where another rank failed or did not answer in time.
  void wait();

 private:
  std::function<void()> wait_;
};

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
  /// Returns once rank `root` has called it too, however long that takes, while all others have a time limit: for what one
  /// rank does alone, such as saving.
  virtual void await(int root) = 0;

  /// These ranks as a group of their own, in this order: the caller is one of them, and all of them call it. Each rank
  /// takes part in as many such calls. It must not outlive this communicator. Throws c10::Error where it cannot be made.
  virtual std::unique_ptr<Communicator> subgroup(const std::vector<int>& ranks);

  // The same begun now and waited for later. Tensors are contiguous. Unless a communicator does better, all is done at once.

  virtual Pending start_all_reduce_sum(Tensor tensor);
  /// part [n, ...] of every rank -> whole [world_size * n, ...], in rank order.
  virtual Pending start_all_gather(Tensor whole, Tensor part);
  /// whole [world_size * n, ...] of every rank, summed over ranks -> the rank's rows of it, part [n, ...].
  virtual Pending start_reduce_scatter_sum(Tensor part, Tensor whole);
};

/// One process: rank 0 of 1.
std::unique_ptr<Communicator> make_singleton();

/// Joins the group that RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT describe (torchrun sets them; rank 0 listens on
/// that port): Gloo where `device` is the CPU, else NCCL on that GPU, with Gloo for tensors of the host. The singleton
/// where WORLD_SIZE is not set or 1. Throws ConfigError for variables that are missing or make no sense and for a GPU in a
/// build without NCCL, and c10::Error where the others do not come, or do not answer a later call, within `timeout`.
std::unique_ptr<Communicator> init(at::Device device, std::chrono::seconds timeout = std::chrono::minutes(10));

}  // namespace dalle::distributed

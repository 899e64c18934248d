// How processes of one run talk. Without a launcher there is one process and every operation is free, so no caller has a
// branch for it. Each rank must make the same calls in the same order.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <string>
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

/// How long a rank may stay at one place before the others, waiting for it, take it for hung.
enum class Pace {
  kSteady,     // Watch::timeout
  kOpenEnded,  // any time: for what may rightly take long, such as starting, drawing and saving
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

  // What the others are told of this rank where ranks watch over each other (see Watch); else nothing happens.

  /// Where this rank is ("step 12, backward pass"), until the next call.
  virtual void note(const std::string& /*place*/, Pace /*pace*/ = Pace::kSteady) {}
  /// An error ends this rank; the others end with this message. To be called before anything is torn down.
  virtual void fail(const std::string& /*message*/) {}
  /// This rank ends well: its silence is no loss from now on. To be called last, once all ranks have come to the end.
  virtual void leave() {}

  // The same begun now and waited for later. Tensors are contiguous. Unless a communicator does better, all is done at once.

  virtual Pending start_all_reduce_sum(Tensor tensor);
  /// part [n, ...] of every rank -> whole [world_size * n, ...], in rank order.
  virtual Pending start_all_gather(Tensor whole, Tensor part);
  /// whole [world_size * n, ...] of every rank, summed over ranks -> the rank's rows of it, part [n, ...].
  virtual Pending start_reduce_scatter_sum(Tensor part, Tensor whole);
};

/// One process: rank 0 of 1.
std::unique_ptr<Communicator> make_singleton();

/// Ranks that watch over each other: each says by the store of the rendezvous, from a thread of its own, that it lives, how
/// far it is and where. A rank that is killed, stopped, cut off, hung or failed ends all others within `timeout`; one that
/// does not come at all, within three quarters of it.
struct Watch {
  std::chrono::milliseconds timeout{};
  /// Called on every other rank, once and in a thread of its own, with a message that names the lost rank and where it was
  /// last seen. The main thread may be waiting for that rank for ever: this must end the process.
  std::function<void(const std::string& message)> end;
};

/// Joins the group that the launcher's variables describe (see read_launch_environment: torchrun, srun, mpirun, or plain
/// RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT; rank 0 listens on that port unless the launcher does): Gloo where
/// `device` is the CPU, else NCCL on that GPU, with Gloo for tensors of the host. The singleton where there is no launcher
/// or one rank. Throws ConfigError for variables that are missing or make no sense and for a GPU in a build without NCCL,
/// and c10::Error where the others do not come, or do not answer a later call, within `timeout`; with a watch that is the
/// last resort, and should be longer than the watch's own.
std::unique_ptr<Communicator> init(at::Device device, std::chrono::seconds timeout = std::chrono::minutes(10),
                                   const std::optional<Watch>& watch = std::nullopt);

}  // namespace dalle::distributed

#include "watched_communicator.h"

#include <ATen/ATen.h>

#include "dalle/core/str.h"

namespace dalle::distributed {
namespace {

class WaitScope {
 public:
  WaitScope(Heartbeat& heartbeat, const char* name, int64_t number) : heartbeat_(heartbeat) {
    heartbeat_.begin_wait(str("collective ", number, " (", name, ")"));
  }
  ~WaitScope() { heartbeat_.end_wait(); }
  WaitScope(const WaitScope&) = delete;
  WaitScope& operator=(const WaitScope&) = delete;

 private:
  Heartbeat& heartbeat_;
};

/// Calls `call`. What it throws, but for a caller's mistake, is thrown on once no other rank is found to be the cause.
template <class Call>
auto guarded_call(Heartbeat& heartbeat, const Call& call) {
  try {
    return call();
  } catch (const c10::ValueError&) {
    throw;
  } catch (const std::exception&) {
    heartbeat.await_verdict();
    throw;
  }
}

}  // namespace

template <class Call>
auto WatchedCommunicator::waited(const char* name, const Call& call) {
  const WaitScope scope(*heartbeat_, name, heartbeat_->begin_collective());
  return guarded_call(*heartbeat_, call);
}

template <class Call>
Pending WatchedCommunicator::begun(const char* name, const Call& call) {
  const int64_t number = heartbeat_->begin_collective();
  auto pending = std::make_shared<Pending>(guarded_call(*heartbeat_, call));
  return Pending([heartbeat = heartbeat_, pending, name, number] {
    const WaitScope scope(*heartbeat, name, number);
    guarded_call(*heartbeat, [&] { pending->wait(); });
  });
}

void WatchedCommunicator::all_reduce_sum(Tensor& tensor) {
  waited("all-reduce", [&] { inner_->all_reduce_sum(tensor); });
}

void WatchedCommunicator::broadcast(Tensor& tensor, int root) {
  waited("broadcast", [&] { inner_->broadcast(tensor, root); });
}

Tensor WatchedCommunicator::all_gather(const Tensor& tensor) {
  return waited("all-gather", [&] { return inner_->all_gather(tensor); });
}

void WatchedCommunicator::barrier() {
  waited("barrier", [&] { inner_->barrier(); });
}

void WatchedCommunicator::await(int root) {
  waited("wait for one rank", [&] { inner_->await(root); });
}

std::unique_ptr<Communicator> WatchedCommunicator::subgroup(const std::vector<int>& ranks) {
  auto group = waited("making of a group", [&] { return inner_->subgroup(ranks); });
  if (group->world_size() == 1) return group;
  return std::make_unique<WatchedCommunicator>(std::move(group), heartbeat_);
}

Pending WatchedCommunicator::start_all_reduce_sum(Tensor tensor) {
  return begun("all-reduce", [&] { return inner_->start_all_reduce_sum(tensor); });
}

Pending WatchedCommunicator::start_all_gather(Tensor whole, Tensor part) {
  return begun("all-gather", [&] { return inner_->start_all_gather(whole, part); });
}

Pending WatchedCommunicator::start_reduce_scatter_sum(Tensor part, Tensor whole) {
  return begun("reduce-scatter", [&] { return inner_->start_reduce_scatter_sum(part, whole); });
}

}  // namespace dalle::distributed

#include "c10d_communicator.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <c10/util/Logging.h>

#include <algorithm>
#include <cstdlib>
#include <functional>
#include <future>
#include <thread>

#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/TCPStore.hpp>

#include "dalle/core/error.h"
#include "dalle/core/str.h"
#include "dalle/distributed/agreement.h"

namespace dalle::distributed {
namespace {

// A work's tensors live as long as it does: some backends keep no reference to them.
Pending pending(c10::intrusive_ptr<c10d::Work> work, std::vector<Tensor> tensors) {
  return Pending([work = std::move(work), tensors = std::move(tensors)] { work->wait(); });
}

void check_dense(const Tensor& tensor) {
  TORCH_CHECK_VALUE(tensor.is_contiguous(), "[communicator] expected a contiguous tensor, got strides ",
                    tensor.strides());
}

void check_parts(const Tensor& part, const Tensor& whole, int64_t world_size) {
  check_dense(part);
  check_dense(whole);
  TORCH_CHECK_VALUE(whole.numel() == part.numel() * world_size && whole.scalar_type() == part.scalar_type(),
                    "[communicator] expected ", world_size, " parts in the whole, got ", part.sizes(), " and ",
                    whole.sizes());
}

std::string arrival_key(int rank) { return str("arrived/", rank); }

/// c10d waits without a limit where a server accepts and then says nothing: one whose process is stopped.
Store answer_within(std::chrono::steady_clock::duration limit, std::function<Store()> attempt) {
  std::packaged_task<Store()> task(std::move(attempt));
  auto result = task.get_future();
  std::thread thread(std::move(task));
  if (result.wait_for(limit) == std::future_status::timeout) {
    thread.detach();
    throw Error("a server that does not answer");
  }
  thread.join();
  return result.get();
}

}  // namespace

Store connect(const Launch& launch, bool serves) {
  // c10d prints its own warnings, with a trace, for what is thrown and reported here anyway.
  const bool is_asked = std::getenv("TORCH_CPP_LOG_LEVEL") != nullptr;
  const auto set_level = [&](int level) {
    if (!is_asked) FLAGS_caffe2_log_level = level;
  };
  c10d::TCPStoreOptions options;
  options.port = launch.port;
  options.isServer = serves;
  options.waitWorkers = false;
  // One attempt of c10d's may take its timeout twice.
  options.timeout = serves ? launch.meeting : std::min(launch.meeting / 8, std::chrono::milliseconds(1000));
  const std::chrono::steady_clock::duration at_least = options.timeout;
  const auto end = std::chrono::steady_clock::now() + launch.meeting;
  Store store;
  while (!store) {
    try {
      set_level(c10::GLOG_FATAL);
      store = answer_within(
          std::max(end - std::chrono::steady_clock::now(), 2 * at_least),
          [launch, options]() -> Store { return c10::make_intrusive<c10d::TCPStore>(launch.address, options); });
    } catch (const std::exception& error) {
      if (!serves && std::chrono::steady_clock::now() < end) continue;
      set_level(c10::GLOG_ERROR);
      const char* server = launch.store_is_served ? "the launcher" : "rank 0";
      throw Error(Problem{str("rank ", launch.rank),
                          str("a store that ", server, " serves at ", launch.address, ":", launch.port),
                          error_text(error), str("look at the messages of ", server)});
    }
  }
  set_level(c10::GLOG_ERROR);
  store->setTimeout(launch.timeout);
  if (!launch.key_prefix.empty()) store = c10::make_intrusive<c10d::PrefixStore>(launch.key_prefix, store);
  return store;
}

void meet(c10d::Store& store, const Launch& launch) {
  const std::string own = str(launch.world_size), first = store.compareSet("world_size", "", own);
  if (first != own) {
    throw ConfigError(Problem{str("rank ", launch.rank), str("a world size of ", first, ", as other ranks have"), own,
                              "start every rank with the same number of ranks"});
  }
  store.set(arrival_key(launch.rank), "here");
  constexpr std::chrono::milliseconds kPause{10};
  std::chrono::milliseconds waited{};  // and not the time in which this process was stopped
  for (int rank = 0; rank < launch.world_size; ++rank) {
    while (!store.check({arrival_key(rank)})) {
      if (waited > launch.meeting) {
        throw Error(
            Problem{str("rank ", launch.rank), str(launch.world_size, " ranks to come"), str("no sign of rank ", rank),
                    str("look at that rank's messages, and whether it can reach ", launch.address, ":", launch.port)});
      }
      std::this_thread::sleep_for(kPause);
      waited += kPause;
    }
  }
}

// Collectives want dense rows: another layout goes through a copy, so ranks may differ in it.
void C10dCommunicator::all_reduce_sum(Tensor& tensor) {
  const c10::NoGradGuard no_grad;
  const Tensor values = tensor.detach(), dense = values.contiguous();
  start_all_reduce_sum(dense).wait();
  if (!values.is_contiguous()) values.copy_(dense);
}

void C10dCommunicator::broadcast(Tensor& tensor, int root) {
  const c10::NoGradGuard no_grad;
  const Tensor values = tensor.detach();
  std::vector<Tensor> dense{values.contiguous()};
  c10d::BroadcastOptions options;
  options.rootRank = root;
  backend_of(tensor).broadcast(dense, options)->wait();
  if (!values.is_contiguous()) values.copy_(dense[0]);
}

Tensor C10dCommunicator::all_gather(const Tensor& tensor) {
  const c10::NoGradGuard no_grad;
  Tensor part = (tensor.dim() == 0 ? tensor.unsqueeze(0) : tensor).detach().contiguous();
  std::vector<int64_t> shape = part.sizes().vec();
  shape[0] *= world_size();
  Tensor whole = at::empty(shape, part.options());
  start_all_gather(whole, part).wait();
  return whole;
}

Pending C10dCommunicator::start_all_reduce_sum(Tensor tensor) {
  check_dense(tensor);
  std::vector<Tensor> tensors{tensor.detach()};
  auto work = backend_of(tensor).allreduce(tensors);
  return pending(std::move(work), std::move(tensors));
}

Pending C10dCommunicator::start_all_gather(Tensor whole, Tensor part) {
  check_parts(part, whole, world_size());
  auto work = backend_of(part)._allgather_base(whole, part);
  return pending(std::move(work), {whole, part});
}

Pending C10dCommunicator::start_reduce_scatter_sum(Tensor part, Tensor whole) {
  check_parts(part, whole, world_size());
  auto work = backend_of(part)._reduce_scatter_base(part, whole);
  return pending(std::move(work), {part, whole});
}

void C10dCommunicator::barrier() {
  c10d::BarrierOptions options;
  options.device = device_;
  accelerator_->barrier(options)->wait();
  // NCCL's has ended on this device then, its last bytes may still be on their way to others: a process that ended now would
  // break theirs.
  if (device_.is_cuda()) host_->barrier()->wait();
}

std::unique_ptr<Communicator> C10dCommunicator::subgroup(const std::vector<int>& ranks) {
  const auto own = std::find(ranks.begin(), ranks.end(), rank());
  TORCH_CHECK_VALUE(own != ranks.end(), "[communicator] rank ", rank(), " is not in the group that it makes");
  std::string prefix = str("group/", num_groups_++);
  if (ranks.size() == 1) return make_singleton();
  for (const int rank : ranks) prefix += str("/", rank);
  return make_group_(c10::make_intrusive<c10d::PrefixStore>(prefix, store_), static_cast<int>(own - ranks.begin()),
                     static_cast<int>(ranks.size()));
}

// By the store and not by a collective: nothing is under way that could run into its time limit.
void C10dCommunicator::await(int root) {
  const int64_t calls = ++num_awaited_[root];
  const std::string key = str("await/", root);
  if (rank() == root) {
    store_->add(key, 1);
    return;
  }
  auto pause = std::chrono::milliseconds(1);
  while (store_->add(key, 0) < calls) {
    std::this_thread::sleep_for(pause);
    pause = std::min(2 * pause, std::chrono::milliseconds(200));
  }
}

}  // namespace dalle::distributed

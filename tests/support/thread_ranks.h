// Ranks as threads of one process: a communicator whose sums are taken in the order of ranks, for tests of what ranks
// compute together without starting processes.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <barrier>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "dalle/distributed/communicator.h"

namespace dalle::testing {

/// What the ranks of one group share.
struct ThreadMeeting {
  explicit ThreadMeeting(int size) : size(size), meet(size), tensors(static_cast<size_t>(size)) {}
  int size;
  std::barrier<> meet;
  std::vector<Tensor> tensors;

  /// That of some of its ranks.
  ThreadMeeting& group(const std::vector<int>& ranks) {
    const std::lock_guard lock(mutex);
    auto& group = groups[ranks];
    if (!group) group = std::make_unique<ThreadMeeting>(static_cast<int>(ranks.size()));
    return *group;
  }
  std::mutex mutex;
  std::map<std::vector<int>, std::unique_ptr<ThreadMeeting>> groups;
};

class ThreadRank : public distributed::Communicator {
 public:
  ThreadRank(ThreadMeeting& meeting, int rank) : meeting_(meeting), rank_(rank) {}
  int rank() const override { return rank_; }
  int world_size() const override { return meeting_.size; }
  void all_reduce_sum(Tensor& tensor) override {
    reduced_elements += tensor.numel();
    ++calls;
    const auto all = exchange(tensor.detach());
    Tensor sum = all[0].clone();
    for (size_t r = 1; r < all.size(); ++r) sum += all[r];
    meeting_.meet.arrive_and_wait();  // nobody reads `tensor` any more
    tensor.detach().copy_(sum);
  }
  void broadcast(Tensor& tensor, int root) override {
    const Tensor sent = exchange(tensor.detach())[static_cast<size_t>(root)].clone();
    meeting_.meet.arrive_and_wait();
    tensor.detach().copy_(sent);
  }
  Tensor all_gather(const Tensor& tensor) override {
    gathered_bytes += static_cast<int64_t>(tensor.nbytes());
    ++calls;
    const Tensor all = at::cat(exchange(tensor.dim() == 0 ? tensor.unsqueeze(0) : tensor));
    meeting_.meet.arrive_and_wait();
    return all;
  }
  void barrier() override { meeting_.meet.arrive_and_wait(); }
  void await(int /*root*/) override { barrier(); }

  std::unique_ptr<distributed::Communicator> subgroup(const std::vector<int>& ranks) override {
    const auto own = std::find(ranks.begin(), ranks.end(), rank_);
    return std::make_unique<ThreadRank>(meeting_.group(ranks), static_cast<int>(own - ranks.begin()));
  }

  int64_t calls = 0;  // collectives so far, and what this rank put into them
  int64_t reduced_elements = 0;
  int64_t gathered_bytes = 0;

 private:
  std::vector<Tensor> exchange(const Tensor& tensor) {
    meeting_.tensors[static_cast<size_t>(rank_)] = tensor;
    meeting_.meet.arrive_and_wait();
    return meeting_.tensors;
  }

  ThreadMeeting& meeting_;
  int rank_;
};

/// Runs `work` as every rank of a group of `size` and waits. What a rank throws is a failure of the test; it then leaves
/// the group, so that the others end.
inline void run_thread_ranks(int size, const std::function<void(ThreadRank&)>& work) {
  ThreadMeeting meeting(size);
  std::vector<std::thread> threads;
  for (int r = 0; r < size; ++r) {
    threads.emplace_back([&meeting, &work, r] {
      ThreadRank rank(meeting, r);
      try {
        work(rank);
      } catch (const std::exception& error) {
        ADD_FAILURE() << "rank " << r << ": " << error.what();
        meeting.meet.arrive_and_drop();
      }
    });
  }
  for (auto& thread : threads) thread.join();
}

}  // namespace dalle::testing

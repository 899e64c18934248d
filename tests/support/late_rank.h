// A communicator that does what is begun only when it is waited for: what is read too early is not there yet, and what is
// never waited for is never done.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "dalle/distributed/communicator.h"

namespace dalle::testing {

class LateRank : public distributed::Communicator {
 public:
  explicit LateRank(distributed::Communicator& inner) : inner_(inner) {}
  explicit LateRank(std::unique_ptr<distributed::Communicator> inner) : owned_(std::move(inner)), inner_(*owned_) {}
  int rank() const override { return inner_.rank(); }
  int world_size() const override { return inner_.world_size(); }
  void all_reduce_sum(Tensor& tensor) override { inner_.all_reduce_sum(tensor); }
  void broadcast(Tensor& tensor, int root) override { inner_.broadcast(tensor, root); }
  Tensor all_gather(const Tensor& tensor) override { return inner_.all_gather(tensor); }
  void barrier() override { inner_.barrier(); }
  void await(int root) override { inner_.await(root); }
  std::unique_ptr<distributed::Communicator> subgroup(const std::vector<int>& ranks) override {
    return std::make_unique<LateRank>(inner_.subgroup(ranks));
  }
  distributed::Pending start_all_reduce_sum(Tensor tensor) override {
    ++num_begun;
    return distributed::Pending([this, tensor]() mutable { inner_.all_reduce_sum(tensor); });
  }
  distributed::Pending start_all_gather(Tensor whole, Tensor part) override {
    ++num_begun;
    return distributed::Pending([this, whole, part] { inner_.start_all_gather(whole, part).wait(); });
  }
  distributed::Pending start_reduce_scatter_sum(Tensor part, Tensor whole) override {
    ++num_begun;
    return distributed::Pending([this, part, whole] { inner_.start_reduce_scatter_sum(part, whole).wait(); });
  }

  int64_t num_begun = 0;  // so far, of those that may be waited for later

 private:
  std::unique_ptr<distributed::Communicator> owned_;
  distributed::Communicator& inner_;
};

}  // namespace dalle::testing

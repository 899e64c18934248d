// The communicator over any c10d backend (Gloo, NCCL).
#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>
#include <torch/csrc/distributed/c10d/Store.hpp>

#include "backends.h"

namespace dalle::distributed {

/// The key-value store by which the ranks find each other; rank 0 serves it.
c10::intrusive_ptr<c10d::Store> make_store(const Launch& launch);

class C10dCommunicator : public Communicator {
 public:
  C10dCommunicator(c10::intrusive_ptr<c10d::Backend> backend, at::Device device)
      : backend_(std::move(backend)), device_(device) {}
  int rank() const override { return backend_->getRank(); }
  int world_size() const override { return backend_->getSize(); }
  void all_reduce_sum(Tensor& tensor) override;
  void broadcast(Tensor& tensor, int root) override;
  Tensor all_gather(const Tensor& tensor) override;
  void barrier() override;

 private:
  c10::intrusive_ptr<c10d::Backend> backend_;
  at::Device device_;
};

}  // namespace dalle::distributed

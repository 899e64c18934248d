// The communicator over any c10d backend (Gloo, NCCL).
#pragma once

#include <torch/csrc/distributed/c10d/Backend.hpp>

#include <map>

#include "backends.h"

namespace dalle::distributed {

using Backend = c10::intrusive_ptr<c10d::Backend>;

/// A connection to the store, or what serves it. Keys are this attempt's own. Throws Error where nobody serves it.
Store connect(const Launch& launch, bool serves);

/// Returns once every rank has come to the store. Throws Error, naming a rank that has not.
void meet(c10d::Store& store, const Launch& launch);

Backend make_gloo_backend(const Launch& launch, const Store& store);

/// Makes the communicator of a group from a store of its own.
using MakeGroup = std::function<std::unique_ptr<Communicator>(const Store& store, int rank, int size)>;

class C10dCommunicator : public Communicator {
 public:
  /// `host` carries tensors of the host's memory, `device_backend` those of `device`; on the CPU they are the same.
  C10dCommunicator(Store store, Backend host, Backend device_backend, at::Device device, MakeGroup make_group)
      : store_(std::move(store)),
        host_(std::move(host)),
        accelerator_(std::move(device_backend)),
        device_(device),
        make_group_(std::move(make_group)) {}
  int rank() const override { return host_->getRank(); }
  int world_size() const override { return host_->getSize(); }
  void all_reduce_sum(Tensor& tensor) override;
  void broadcast(Tensor& tensor, int root) override;
  Tensor all_gather(const Tensor& tensor) override;
  void barrier() override;
  void await(int root) override;
  std::unique_ptr<Communicator> subgroup(const std::vector<int>& ranks) override;
  Pending start_all_reduce_sum(Tensor tensor) override;
  Pending start_all_gather(Tensor whole, Tensor part) override;
  Pending start_reduce_scatter_sum(Tensor part, Tensor whole) override;

 private:
  c10d::Backend& backend_of(const Tensor& tensor) { return tensor.is_cpu() ? *host_ : *accelerator_; }

  Store store_;
  Backend host_, accelerator_;
  at::Device device_;
  MakeGroup make_group_;
  std::map<int, int64_t> num_awaited_;  // of each root
  int64_t num_groups_ = 0;
};

}  // namespace dalle::distributed

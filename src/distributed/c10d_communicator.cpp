#include "c10d_communicator.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <torch/csrc/distributed/c10d/TCPStore.hpp>

namespace dalle::distributed {

c10::intrusive_ptr<c10d::Store> make_store(const Launch& launch) {
  c10d::TCPStoreOptions options;
  options.port = launch.port;
  options.isServer = launch.rank == 0;
  options.numWorkers = static_cast<size_t>(launch.world_size);
  options.timeout = launch.timeout;
  return c10::make_intrusive<c10d::TCPStore>(launch.address, options);
}

// Collectives want dense rows: another layout goes through a copy, so ranks may differ in it.
void C10dCommunicator::all_reduce_sum(Tensor& tensor) {
  const c10::NoGradGuard no_grad;
  const Tensor values = tensor.detach();
  std::vector<Tensor> dense{values.contiguous()};
  backend_->allreduce(dense)->wait();
  if (!values.is_contiguous()) values.copy_(dense[0]);
}

void C10dCommunicator::broadcast(Tensor& tensor, int root) {
  const c10::NoGradGuard no_grad;
  const Tensor values = tensor.detach();
  std::vector<Tensor> dense{values.contiguous()};
  c10d::BroadcastOptions options;
  options.rootRank = root;
  backend_->broadcast(dense, options)->wait();
  if (!values.is_contiguous()) values.copy_(dense[0]);
}

Tensor C10dCommunicator::all_gather(const Tensor& tensor) {
  const c10::NoGradGuard no_grad;
  Tensor part = (tensor.dim() == 0 ? tensor.unsqueeze(0) : tensor).detach().contiguous();
  std::vector<int64_t> shape = part.sizes().vec();
  shape[0] *= world_size();
  Tensor whole = at::empty(shape, part.options());
  backend_->_allgather_base(whole, part)->wait();
  return whole;
}

void C10dCommunicator::barrier() {
  c10d::BarrierOptions options;
  options.device = device_;
  backend_->barrier(options)->wait();
}

}  // namespace dalle::distributed

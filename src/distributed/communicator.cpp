#include "dalle/distributed/communicator.h"

#include <ATen/ATen.h>

#include <utility>

#include "c10d_communicator.h"
#include "dalle/core/error.h"
#include "dalle/distributed/agreement.h"
#include "watched_communicator.h"

namespace dalle::distributed {
namespace {

class Singleton : public Communicator {
 public:
  int rank() const override { return 0; }
  int world_size() const override { return 1; }
  void all_reduce_sum(Tensor&) override {}
  void broadcast(Tensor&, int root) override { TORCH_CHECK_VALUE(root == 0, "[broadcast] no rank ", root, " of 1"); }
  Tensor all_gather(const Tensor& tensor) override {
    return (tensor.dim() == 0 ? tensor.unsqueeze(0) : tensor).contiguous().clone();
  }
  void barrier() override {}
  void await(int) override {}
};

}  // namespace

void Pending::wait() {
  if (const auto wait = std::exchange(wait_, nullptr)) wait();
}

Pending Communicator::start_all_reduce_sum(Tensor tensor) {
  all_reduce_sum(tensor);
  return {};
}

Pending Communicator::start_all_gather(Tensor whole, Tensor part) {
  whole.copy_(all_gather(part));
  return {};
}

Pending Communicator::start_reduce_scatter_sum(Tensor part, Tensor whole) {
  Tensor sum = whole.clone();
  all_reduce_sum(sum);
  part.copy_(sum.slice(0, rank() * part.size(0), (rank() + 1) * part.size(0)));
  return {};
}

std::unique_ptr<Communicator> Communicator::subgroup(const std::vector<int>& ranks) {
  TORCH_CHECK_VALUE(ranks == std::vector<int>{rank()}, "[communicator] this kind has no groups of several ranks");
  return make_singleton();
}

std::unique_ptr<Communicator> make_singleton() { return std::make_unique<Singleton>(); }

std::unique_ptr<Communicator> init(at::Device device, std::chrono::seconds timeout, const std::optional<Watch>& watch) {
  const std::chrono::milliseconds meeting = watch ? watch->timeout * 3 / 4 : std::chrono::milliseconds(timeout);
  const Launch launch{read_launch_environment(), timeout, meeting};
  if (launch.world_size == 1) return make_singleton();
  const Store store = connect(launch, /*serves=*/launch.rank == 0 && !launch.store_is_served);
  const auto join = [&] {
    meet(*store, launch);
    return device.is_cpu() ? make_gloo(launch, store) : make_nccl(launch, store, device);
  };
  if (!watch) return join();
  const auto heartbeat = std::make_shared<Heartbeat>(connect(launch, /*serves=*/false), launch, *watch);
  try {
    return std::make_unique<WatchedCommunicator>(join(), heartbeat);
  } catch (const Error& error) {
    heartbeat->fail(error.what());
    throw;
  } catch (const std::exception& error) {
    heartbeat->await_verdict();
    heartbeat->fail(error_text(error));
    throw;
  }
}

}  // namespace dalle::distributed

// NCCL, in builds with DALLE_WITH_NCCL (which defines USE_C10D_NCCL); nccl_backend_stub.cpp stands for it in others.
#include <torch/csrc/distributed/c10d/PrefixStore.hpp>
#include <torch/csrc/distributed/c10d/ProcessGroupNCCL.hpp>

#include <chrono>
#include <cstdlib>
#include <string>

#include "c10d_communicator.h"

namespace dalle::distributed {

namespace {

std::unique_ptr<Communicator> nccl_group(Launch launch, at::Device device, const Store& store, int rank, int size) {
  launch.rank = rank;
  launch.world_size = size;
  auto options = c10d::ProcessGroupNCCL::Options::create();
  options->timeout = launch.timeout;
  auto group = c10::make_intrusive<c10d::ProcessGroupNCCL>(c10::make_intrusive<c10d::PrefixStore>("nccl", store), rank,
                                                           size, options);
  group->setBoundDeviceId(device);
  const Backend host = make_gloo_backend(launch, c10::make_intrusive<c10d::PrefixStore>("host", store));
  return std::make_unique<C10dCommunicator>(
      store, host, std::move(group), device,
      [launch, device](const Store& part, int r, int n) { return nccl_group(launch, device, part, r, n); });
}

}  // namespace

std::unique_ptr<Communicator> make_nccl(const Launch& launch, const Store& store, at::Device device) {
  // After a broken connection LibTorch's watchdog waits four times this long for others' reports and then aborts the process
  // (15 s each by default): the heartbeat, which names the rank, has to come first.
  const auto milliseconds = std::chrono::duration_cast<std::chrono::milliseconds>(launch.timeout).count() / 4;
  ::setenv("TORCH_NCCL_WAIT_TIMEOUT_DUMP_MILSEC", std::to_string(milliseconds).c_str(), /*overwrite=*/0);
  return nccl_group(launch, device, store, launch.rank, launch.world_size);
}

}  // namespace dalle::distributed

// The only file that sees Gloo's headers (Debian's libgloo-dev). They are needed as declarations only: the code is
// LibTorch's own Gloo, and Debian's library must not be linked.
#define USE_C10D_GLOO
#include <torch/csrc/distributed/c10d/ProcessGroupGloo.hpp>

#include <cstdlib>

#include "c10d_communicator.h"

namespace dalle::distributed {
namespace {

/// The network interface: GLOO_SOCKET_IFNAME as in PyTorch, the loopback for ranks of one machine, else the host's own.
auto make_device(const std::string& address) {
  using c10d::ProcessGroupGloo;
  if (const char* name = std::getenv("GLOO_SOCKET_IFNAME")) return ProcessGroupGloo::createDeviceForInterface(name);
  if (address == "127.0.0.1" || address == "localhost") return ProcessGroupGloo::createDeviceForHostname("127.0.0.1");
  return ProcessGroupGloo::createDefaultDevice();
}

}  // namespace

Backend make_gloo_backend(const Launch& launch, const Store& store) {
  auto options = c10d::ProcessGroupGloo::Options::create(launch.timeout);
  options->devices.push_back(make_device(launch.address));
  return c10::make_intrusive<c10d::ProcessGroupGloo>(store, launch.rank, launch.world_size, options);
}

namespace {

std::unique_ptr<Communicator> gloo_group(Launch launch, const Store& store, int rank, int size) {
  launch.rank = rank;
  launch.world_size = size;
  const Backend group = make_gloo_backend(launch, store);
  return std::make_unique<C10dCommunicator>(
      store, group, group, at::Device(at::kCPU),
      [launch](const Store& part, int r, int n) { return gloo_group(launch, part, r, n); });
}

}  // namespace

std::unique_ptr<Communicator> make_gloo(const Launch& launch, const Store& store) {
  return gloo_group(launch, store, launch.rank, launch.world_size);
}

}  // namespace dalle::distributed

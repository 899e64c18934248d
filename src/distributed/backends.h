// What each backend makes from the launcher's description of the group. NCCL's file and its stub define the same symbol.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>

#include "dalle/distributed/communicator.h"

namespace dalle::distributed {

struct Launch {
  int rank = 0;
  int world_size = 1;
  std::string address;
  uint16_t port = 0;
  std::chrono::milliseconds timeout{};
};

std::unique_ptr<Communicator> make_gloo(const Launch& launch);

/// Throws ConfigError where the build has no NCCL.
std::unique_ptr<Communicator> make_nccl(const Launch& launch, at::Device device);

}  // namespace dalle::distributed

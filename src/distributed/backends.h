// What each backend makes from the launcher's description of the group. NCCL's file and its stub define the same symbol.
#pragma once

#include <chrono>
#include <memory>

#include "dalle/distributed/communicator.h"
#include "dalle/distributed/launch_environment.h"

namespace dalle::distributed {

struct Launch : LaunchEnvironment {
  std::chrono::milliseconds timeout{};
};

std::unique_ptr<Communicator> make_gloo(const Launch& launch);

/// Throws ConfigError where the build has no NCCL.
std::unique_ptr<Communicator> make_nccl(const Launch& launch, at::Device device);

}  // namespace dalle::distributed

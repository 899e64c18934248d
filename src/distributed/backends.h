// What each backend makes from the launcher's description of the group. NCCL's file and its stub define the same symbol.
#pragma once

#include <torch/csrc/distributed/c10d/Store.hpp>

#include <chrono>
#include <memory>

#include "dalle/distributed/communicator.h"
#include "dalle/distributed/launch_environment.h"

namespace dalle::distributed {

struct Launch : LaunchEnvironment {
  std::chrono::milliseconds timeout{};  // of the backends' operations
  std::chrono::milliseconds meeting{};  // for all ranks to come
};

/// The key-value store by which the ranks find each other.
using Store = c10::intrusive_ptr<c10d::Store>;

std::unique_ptr<Communicator> make_gloo(const Launch& launch, const Store& store);

/// Throws ConfigError where the build has no NCCL.
std::unique_ptr<Communicator> make_nccl(const Launch& launch, const Store& store, at::Device device);

}  // namespace dalle::distributed

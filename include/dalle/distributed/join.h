// How a command becomes one of the ranks that a launcher has started: its device, its threads, its voice, its group.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string>

#include "dalle/distributed/communicator.h"

namespace dalle::distributed {

struct JoinOptions {
  std::string
      device;       // as --device; of several ranks auto and cuda stand for the GPU of the rank's number on its machine
  int threads = 0;  // 0 = the rank's share of the cores
  std::chrono::seconds timeout{120};                    // in which a lost rank ends the others
  std::function<void(const std::string& message)> end;  // Watch::end
};

/// The ranks of a run, and where this one computes.
struct Ranks {
  std::unique_ptr<Communicator> communicator;
  at::Device device;
  int on_this_machine = 1;

  bool is_first() const { return communicator->rank() == 0; }
};

/// Joins the ranks, which from then on watch over each other: where one is lost the others end within the time, with exit
/// code 1 (Watch). All but the first keep quiet on the console but for warnings and errors, which name their rank. Without
/// a launcher this process is alone. Throws what init() and select_device() throw, and ConfigError where the launcher does
/// not say which GPU is the rank's.
Ranks join_ranks(const JoinOptions& options);

/// What `body` returns, done as one of these ranks: the others learn of what it throws, and that this rank ends well.
int run_as_rank(Communicator& communicator, const std::function<int()>& body);

}  // namespace dalle::distributed

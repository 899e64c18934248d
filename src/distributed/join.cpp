#include "dalle/distributed/join.h"

#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <thread>

#include "dalle/core/device.h"
#include "dalle/core/error.h"
#include "dalle/core/logging.h"
#include "dalle/core/str.h"
#include "dalle/distributed/agreement.h"
#include "dalle/distributed/launch_environment.h"

namespace dalle::distributed {
namespace {

/// Threads of a rank where nobody has said: its share of the cores, if ranks share a machine. 0: the library's default.
int threads_of_rank(const LaunchEnvironment& environment) {
  const bool is_said = std::getenv("OMP_NUM_THREADS") != nullptr;
  if (is_said || environment.local_size.value_or(1) == 1) return 0;
  const auto cores = static_cast<int>(std::thread::hardware_concurrency());  // that this process may use
  const bool binds = environment.launcher == Launcher::kSlurm || environment.launcher == Launcher::kOpenMpi;
  if (binds && cores < static_cast<int>(::sysconf(_SC_NPROCESSORS_ONLN))) return 0;  // has its cores already
  return std::max(1, cores / *environment.local_size);
}

/// Each rank of a machine takes the GPU of its number, unless --device names one or none.
std::string device_of_rank(const std::string& name, const LaunchEnvironment& environment) {
  if (environment.world_size == 1 || (name != "auto" && name != "cuda")) return name;
  const at::Device first = select_device(name);
  if (first.is_cpu()) return "cpu";
  if (!environment.local_rank) {
    throw ConfigError(Problem{"environment variable LOCAL_RANK", "the rank's number on its machine, to choose its GPU",
                              "nothing", "set it, or say --device cuda:INDEX for each rank"});
  }
  return str("cuda:", *environment.local_rank);
}

}  // namespace

Ranks join_ranks(const JoinOptions& options) {
  const LaunchEnvironment environment = read_launch_environment();
  set_num_threads(options.threads > 0 ? options.threads : threads_of_rank(environment));
  const at::Device device = select_device(device_of_rank(options.device, environment));
  if (environment.rank > 0) {
    set_console_prefix(str("[rank ", environment.rank, "] "));
    set_console_level(LogLevel::kWarning);
  }
  // NCCL writes to connections whose other end may be gone: that is an error it reports, not the end of this process.
  if (environment.world_size > 1) std::signal(SIGPIPE, SIG_IGN);
  // The backends' own limit, the last resort: where ranks wait for each other and all of them say that they live.
  const auto longest = std::max(2 * options.timeout, std::chrono::seconds(600));
  return {.communicator = init(device, longest, Watch{.timeout = options.timeout, .end = options.end}),
          .device = device,
          .on_this_machine = environment.local_size.value_or(environment.world_size)};
}

int run_as_rank(Communicator& communicator, const std::function<int()>& body) {
  int result = 0;
  tell_failure(communicator, [&] { result = body(); });
  communicator.leave();
  return result;
}

}  // namespace dalle::distributed

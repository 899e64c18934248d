// Which rank this process is, from the variables that launchers set: torchrun, mpirun of OpenMPI, srun of Slurm, or plain
// RANK and WORLD_SIZE. Nothing is joined here.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

namespace dalle::distributed {

enum class Launcher { kNone, kTorchrun, kOpenMpi, kSlurm, kVariables };

struct LaunchEnvironment {
  Launcher launcher = Launcher::kNone;
  int rank = 0;
  int world_size = 1;
  // Place among the ranks of this machine and their number; unset where the launcher does not say.
  std::optional<int> local_rank;
  std::optional<int> local_size;
  std::string address;  // where the store is served
  uint16_t port = 0;
  bool store_is_served = false;  // by the launcher; else rank 0 serves it
  std::string key_prefix;        // of this attempt's keys in a store that outlives it
};

using GetVariable = std::function<const char*(const char* name)>;

/// Of the launchers whose variables are there the innermost counts: torchrun, then RANK and WORLD_SIZE, then mpirun, then
/// srun. One process where there is none, and in a Slurm batch script outside of srun. Address and port are MASTER_ADDR
/// and MASTER_PORT; without them srun's are its first host and a port made of the job's number, and those of mpirun on one
/// machine the loopback and a port made of the job's name. Throws ConfigError, naming the variable, where one that belongs
/// to others is missing or makes no sense, and where two launchers give different ranks of the same number of ranks.
LaunchEnvironment read_launch_environment(const GetVariable& get);
LaunchEnvironment read_launch_environment();  // of this process

/// Whether the launcher has started this command before, with the same arguments, and starts it again: torchrun after a
/// failure (--max-restarts), Slurm after a requeue.
bool is_restart_by(const GetVariable& get);
bool is_restart();  // of this process

/// "node[003-010,12],other" -> node003, ... node010, node12, other. Throws ConfigError where it is no such list.
std::vector<std::string> expand_host_list(const std::string& list);

}  // namespace dalle::distributed

#include "dalle/distributed/launch_environment.h"

#include <charconv>
#include <cstdlib>

#include "dalle/core/error.h"
#include "dalle/core/random.h"
#include "dalle/core/str.h"

namespace dalle::distributed {
namespace {

constexpr int kMostRanks = 1 << 20;
constexpr const char* kLaunchHint =
    "start the processes with torchrun --no-python, scripts/launch.sh, srun or mpirun, or set RANK, WORLD_SIZE, "
    "MASTER_ADDR and MASTER_PORT; unset what is left over from another job";

[[noreturn]] void fail_variable(const std::string& name, const std::string& expected, const std::string& got) {
  throw ConfigError(Problem{str("environment variable ", name), expected, got, kLaunchHint});
}

class Variables {
 public:
  explicit Variables(const GetVariable& get) : get_(get) {}

  bool has(const char* name) const {
    const char* value = get_(name);
    return value != nullptr && *value != '\0';
  }
  std::string text(const char* name, const std::string& expected) const {
    if (!has(name)) fail_variable(name, expected, "nothing");
    return get_(name);
  }
  int integer(const char* name, int low, int high) const {
    const std::string expected = str("an integer from ", low, " to ", high), value = text(name, expected);
    int number = 0;
    const auto [stop, error] = std::from_chars(value.data(), value.data() + value.size(), number);
    if (error != std::errc{} || stop != value.data() + value.size() || number < low || number > high) {
      fail_variable(name, expected, "'" + value + "'");
    }
    return number;
  }
  std::optional<int> optional_integer(const char* name, int low, int high) const {
    return has(name) ? std::optional(integer(name, low, high)) : std::nullopt;
  }

 private:
  const GetVariable& get_;
};

/// The names by which a launcher says where a process stands.
struct RankNames {
  Launcher launcher;
  const char *rank, *world_size, *local_rank, *local_size;
};

constexpr RankNames kPlainNames{Launcher::kVariables, "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"};
constexpr RankNames kOpenMpiNames{Launcher::kOpenMpi, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE",
                                  "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"};
constexpr RankNames kSlurmNames{Launcher::kSlurm, "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", nullptr};
// Of the step that srun starts, which may be smaller than the job.
constexpr RankNames kSlurmStepNames{Launcher::kSlurm, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", nullptr};

LaunchEnvironment read_ranks(const Variables& variables, const RankNames& names) {
  LaunchEnvironment environment{.launcher = names.launcher};
  environment.world_size = variables.integer(names.world_size, 1, kMostRanks);
  const bool is_alone = environment.world_size == 1 && !variables.has(names.rank);
  environment.rank = is_alone ? 0 : variables.integer(names.rank, 0, environment.world_size - 1);
  if (names.local_size != nullptr) {
    environment.local_size = variables.optional_integer(names.local_size, 1, environment.world_size);
  }
  const int most = environment.local_size.value_or(environment.world_size);
  environment.local_rank = variables.optional_integer(names.local_rank, 0, most - 1);
  return environment;
}

/// "4(x2),3": ranks of each machine. Where all have as many, or there is one machine, their number.
std::optional<int> slurm_tasks_per_node(const Variables& variables, int world_size) {
  const char* name = variables.has("SLURM_STEP_TASKS_PER_NODE") ? "SLURM_STEP_TASKS_PER_NODE" : "SLURM_TASKS_PER_NODE";
  if (!variables.has(name)) return std::nullopt;
  const std::string value = variables.text(name, "");
  if (value.find(',') != std::string::npos) return std::nullopt;
  int number = 0;
  const auto [stop, error] = std::from_chars(value.data(), value.data() + value.size(), number);
  const bool is_whole = stop == value.data() + value.size() || *stop == '(';
  if (error != std::errc{} || !is_whole || number < 1 || number > world_size) return std::nullopt;
  return number;
}

/// A port that all ranks of a job find, and jobs beside it hardly share.
uint16_t port_of(const std::string& job) { return static_cast<uint16_t>(20000 + stable_hash(job) % 20000); }

void read_slurm_place(const Variables& variables, LaunchEnvironment& environment) {
  if (variables.has("MASTER_ADDR")) {
    environment.address = variables.text("MASTER_ADDR", "");
  } else {
    const char* name = variables.has("SLURM_STEP_NODELIST") ? "SLURM_STEP_NODELIST" : "SLURM_JOB_NODELIST";
    const auto hosts = expand_host_list(variables.text(name, "the job's hosts"));
    environment.address = hosts.size() == 1 ? "127.0.0.1" : hosts.front();
  }
  const auto part = [&](const char* name) { return variables.has(name) ? variables.text(name, "") : std::string(); };
  environment.port = variables.has("MASTER_PORT")
                         ? static_cast<uint16_t>(variables.integer("MASTER_PORT", 1, 65535))
                         : port_of(str(variables.text("SLURM_JOB_ID", "the job's number"), ".", part("SLURM_STEP_ID"),
                                       ".", part("SLURM_RESTART_COUNT")));
}

void read_open_mpi_place(const Variables& variables, LaunchEnvironment& environment) {
  const bool is_one_machine = environment.local_size == environment.world_size;
  if (variables.has("MASTER_ADDR") || !is_one_machine) {
    environment.address = variables.text("MASTER_ADDR", "the host name of rank 0 (mpirun -x MASTER_ADDR=HOST)");
  } else {
    environment.address = "127.0.0.1";
  }
  const char* job = variables.has("PMIX_NAMESPACE") ? "PMIX_NAMESPACE" : "OMPI_MCA_ess_base_jobid";
  if (variables.has("MASTER_PORT") || !variables.has(job)) {
    environment.port = static_cast<uint16_t>(variables.integer("MASTER_PORT", 1, 65535));
  } else {
    environment.port = port_of(variables.text(job, ""));
  }
}

void read_plain_place(const Variables& variables, LaunchEnvironment& environment) {
  environment.port = static_cast<uint16_t>(variables.integer("MASTER_PORT", 1, 65535));
  environment.address = variables.text("MASTER_ADDR", "the host name of rank 0");
}

void read_torchrun(const Variables& variables, LaunchEnvironment& environment) {
  environment.launcher = Launcher::kTorchrun;
  environment.store_is_served = variables.text("TORCHELASTIC_USE_AGENT_STORE", "True or False") == "True";
  const int attempt = variables.optional_integer("TORCHELASTIC_RESTART_COUNT", 0, 1 << 30).value_or(0);
  environment.key_prefix = str("dalle/attempt_", attempt);
}

/// Whether mpirun or srun says that this is another rank of as many.
void refuse_contradiction(const Variables& variables, const LaunchEnvironment& plain, const RankNames& names) {
  if (!variables.has(names.rank) || !variables.has(names.world_size)) return;
  const LaunchEnvironment other = read_ranks(variables, names);
  if (other.world_size != plain.world_size || other.rank == plain.rank) return;
  fail_variable("RANK", str(other.rank, ", as ", names.rank, " says (of ", plain.world_size, " ranks)"),
                str(plain.rank));
}

}  // namespace

LaunchEnvironment read_launch_environment(const GetVariable& get) {
  const Variables variables(get);
  // srun sets SLURM_STEP_ID for its tasks; a batch script has SLURM_PROCID too, but is one process.
  const bool is_slurm_step = variables.has("SLURM_STEP_ID") && variables.has("SLURM_PROCID");
  const RankNames& slurm = variables.has("SLURM_STEP_NUM_TASKS") ? kSlurmStepNames : kSlurmNames;
  LaunchEnvironment environment;
  if (variables.has("TORCHELASTIC_RUN_ID") || variables.has("TORCHELASTIC_USE_AGENT_STORE")) {
    environment = read_ranks(variables, kPlainNames);
    read_torchrun(variables, environment);
    if (environment.world_size > 1) read_plain_place(variables, environment);
  } else if (variables.has("RANK") || variables.has("WORLD_SIZE")) {
    environment = read_ranks(variables, kPlainNames);
    refuse_contradiction(variables, environment, kOpenMpiNames);
    if (is_slurm_step) refuse_contradiction(variables, environment, slurm);
    if (environment.world_size > 1) read_plain_place(variables, environment);
  } else if (variables.has("OMPI_COMM_WORLD_RANK") || variables.has("OMPI_COMM_WORLD_SIZE")) {
    environment = read_ranks(variables, kOpenMpiNames);
    if (environment.world_size > 1) read_open_mpi_place(variables, environment);
  } else if (is_slurm_step) {
    environment = read_ranks(variables, slurm);
    environment.local_size = slurm_tasks_per_node(variables, environment.world_size);
    if (environment.world_size > 1) read_slurm_place(variables, environment);
  }
  return environment;
}

LaunchEnvironment read_launch_environment() {
  return read_launch_environment([](const char* name) { return std::getenv(name); });
}

bool is_restart_by(const GetVariable& get) {
  const Variables variables(get);
  for (const char* name : {"TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT"}) {
    if (variables.optional_integer(name, 0, 1 << 30).value_or(0) > 0) return true;
  }
  return false;
}

bool is_restart() {
  return is_restart_by([](const char* name) { return std::getenv(name); });
}

}  // namespace dalle::distributed

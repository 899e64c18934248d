// Several ranks as processes of this machine: this test program again, running one disabled test in each. Where there are
// GPUs their collectives go over NCCL, else over Gloo.
#pragma once

#include <ATen/Context.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

extern char** environ;

namespace dalle::testing {

using Variables = std::vector<std::pair<std::string, std::string>>;

/// Sets environment variables and takes them back.
class Environment {
 public:
  explicit Environment(Variables values) : values_(std::move(values)) {
    for (const auto& [name, value] : values_) ::setenv(name.c_str(), value.c_str(), 1);
  }
  ~Environment() {
    for (const auto& [name, value] : values_) ::unsetenv(name.c_str());
  }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

 private:
  Variables values_;
};

/// A port of the loopback that was free a moment ago.
inline int free_port() {
  const int handle = ::socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof address;
  EXPECT_EQ(::bind(handle, reinterpret_cast<sockaddr*>(&address), size), 0);
  EXPECT_EQ(::getsockname(handle, reinterpret_cast<sockaddr*>(&address), &size), 0);
  ::close(handle);
  return ntohs(address.sin_port);
}

inline int num_gpus() { return at::hasCUDA() ? at::detail::getCUDAHooks().deviceCount() : 0; }

/// What tells a process which rank it is. Ranks share GPUs where there are fewer: NCCL refuses that within a host, so each
/// says that it is a host of its own.
inline Variables rank_variables(int rank, int size, int port) {
  const int gpus = num_gpus();
  Variables variables{{"RANK", std::to_string(rank)},
                      {"WORLD_SIZE", std::to_string(size)},
                      {"LOCAL_RANK", std::to_string(gpus > 0 ? rank % gpus : rank)},
                      {"MASTER_ADDR", "127.0.0.1"},
                      {"MASTER_PORT", std::to_string(port)}};
  if (gpus > 0 && gpus < size) {
    variables.emplace_back("NCCL_HOSTID", "rank-" + std::to_string(rank));
    variables.emplace_back("NCCL_SOCKET_IFNAME", "lo");
  }
  return variables;
}

/// In a process of rank_variables(): its GPU, or the CPU.
inline at::Device rank_device() {
  if (num_gpus() == 0) return at::kCPU;
  return {at::kCUDA, static_cast<at::DeviceIndex>(std::stoi(std::getenv("LOCAL_RANK")))};
}

inline pid_t start_worker(const std::string& test, const Variables& variables) {
  const Environment environment(variables);
  const std::string filter = "--gtest_filter=" + test;
  const char* arguments[] = {"worker",          filter.c_str(),    "--gtest_also_run_disabled_tests",
                             "--gtest_brief=1", "--gtest_output=", nullptr};
  pid_t child = 0;
  EXPECT_EQ(::posix_spawn(&child, "/proc/self/exe", nullptr, nullptr, const_cast<char**>(arguments), environ), 0);
  return child;
}

/// Runs the disabled test `test` ("Suite.DISABLED_Name") as `size` ranks; each must pass it.
inline void run_ranks(int size, const std::string& test) {
  const int port = free_port();
  std::vector<pid_t> children;
  for (int rank = 0; rank < size; ++rank) children.push_back(start_worker(test, rank_variables(rank, size, port)));
  for (int rank = 0; rank < size; ++rank) {
    int status = -1;
    ASSERT_EQ(::waitpid(children[static_cast<size_t>(rank)], &status, 0), children[static_cast<size_t>(rank)]);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "rank " << rank << " status " << status;
  }
}

}  // namespace dalle::testing

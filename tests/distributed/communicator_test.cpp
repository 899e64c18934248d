#include "dalle/distributed/communicator.h"

#include <ATen/ATen.h>
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <spawn.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>

#include "dalle/core/error.h"
#include "support/tensor_matchers.h"

extern char** environ;

namespace dalle::distributed {
namespace {

using testing::bitwise_equal;

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

 private:
  Variables values_;
};

TEST(Communicator, OneProcessNeedsNoLauncher) {
  const auto alone = init(at::kCPU);
  EXPECT_EQ(alone->rank(), 0);
  EXPECT_EQ(alone->world_size(), 1);
  Tensor x = at::arange(6).reshape({2, 3});
  const Tensor before = x.clone();
  alone->all_reduce_sum(x);
  alone->broadcast(x, 0);
  alone->barrier();
  EXPECT_TRUE(bitwise_equal(x, before));
  EXPECT_TRUE(bitwise_equal(alone->all_gather(x), before));
  EXPECT_EQ(alone->all_gather(at::scalar_tensor(3)).sizes(), at::IntArrayRef({1}));
  EXPECT_THROW(alone->broadcast(x, 1), c10::ValueError);
  const Environment one(Variables{{"WORLD_SIZE", "1"}});
  EXPECT_EQ(init(at::kCPU)->world_size(), 1);
}

TEST(Communicator, VariablesWithoutSenseAreNamed) {
  const std::pair<Variables, const char*> cases[] = {
      {{{"WORLD_SIZE", "two"}}, "WORLD_SIZE"},
      {{{"WORLD_SIZE", "0"}}, "WORLD_SIZE"},
      {{{"WORLD_SIZE", "2"}}, "RANK"},
      {{{"WORLD_SIZE", "2"}, {"RANK", "2"}}, "RANK"},
      {{{"WORLD_SIZE", "2"}, {"RANK", "1 "}}, "RANK"},
      {{{"WORLD_SIZE", "2"}, {"RANK", "1"}, {"MASTER_PORT", "65536"}}, "MASTER_PORT"},
      {{{"WORLD_SIZE", "2"}, {"RANK", "1"}, {"MASTER_PORT", "29500"}}, "MASTER_ADDR"}};
  for (const auto& [values, name] : cases) {
    const Environment environment(values);
    try {
      init(at::kCPU);
      ADD_FAILURE() << name;
    } catch (const ConfigError& error) {
      EXPECT_NE(std::string(error.what()).find(name), std::string::npos) << error.what();
    }
  }
}

// --------------------------------------------------------------------------------------------------- several processes

/// What every rank does; run by the tests below in processes of their own, never by itself.
TEST(CommunicatorWorker, DISABLED_Collectives) {
  const auto group = init(at::kCPU, std::chrono::seconds(60));
  const int rank = group->rank(), size = group->world_size();
  const int64_t ranks = size * (size - 1) / 2;  // 0 + 1 + ... + (size - 1)

  for (const auto dtype : {at::kFloat, at::kDouble, at::kLong, at::kInt}) {
    Tensor x = (at::arange(12).reshape({3, 4}) + 100 * rank).to(dtype);
    group->all_reduce_sum(x);
    EXPECT_TRUE(bitwise_equal(x, (at::arange(12).reshape({3, 4}) * size + 100 * ranks).to(dtype)));
  }
  // A gradient whose layout differs between ranks.
  const Tensor image = at::arange(2 * 3 * 4 * 5, at::kFloat).reshape({2, 3, 4, 5});
  Tensor mixed = image.clone(rank == 0 ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous);
  group->all_reduce_sum(mixed);
  EXPECT_TRUE(bitwise_equal(mixed, image * size));
  EXPECT_EQ(mixed.is_contiguous(), rank != 0);

  Tensor weight = at::full({2, 3}, rank, at::kFloat).set_requires_grad(true);
  Tensor column = at::full({3, 2}, rank, at::kLong).select(1, 0);
  const int root = size - 1;
  group->broadcast(weight, root);
  group->broadcast(column, root);
  EXPECT_TRUE(bitwise_equal(weight, at::full({2, 3}, root, at::kFloat)));
  EXPECT_TRUE(bitwise_equal(column, at::full({3}, root, at::kLong)));
  EXPECT_TRUE(weight.requires_grad());

  const Tensor gathered = group->all_gather(at::full({2, 3}, rank, at::kBFloat16).t());
  for (int r = 0; r < size; ++r) {
    EXPECT_TRUE(bitwise_equal(gathered.slice(0, 3 * r, 3 * r + 3), at::full({3, 2}, r, at::kBFloat16)));
  }
  EXPECT_TRUE(bitwise_equal(group->all_gather(at::scalar_tensor(rank, at::kLong)), at::arange(size)));
  group->barrier();
}

/// A port of the loopback that was free a moment ago.
int free_port() {
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

pid_t start_worker(int rank, int size, int port) {
  const Environment environment(Variables{{"RANK", std::to_string(rank)},
                                          {"WORLD_SIZE", std::to_string(size)},
                                          {"MASTER_ADDR", "127.0.0.1"},
                                          {"MASTER_PORT", std::to_string(port)}});
  const char* arguments[] = {"worker",
                             "--gtest_filter=CommunicatorWorker.DISABLED_Collectives",
                             "--gtest_also_run_disabled_tests",
                             "--gtest_brief=1",
                             "--gtest_output=",
                             nullptr};
  pid_t child = 0;
  EXPECT_EQ(::posix_spawn(&child, "/proc/self/exe", nullptr, nullptr, const_cast<char**>(arguments), environ), 0);
  return child;
}

void run_workers(int size) {
  const int port = free_port();
  std::vector<pid_t> children;
  for (int rank = 0; rank < size; ++rank) children.push_back(start_worker(rank, size, port));
  for (int rank = 0; rank < size; ++rank) {
    int status = -1;
    ASSERT_EQ(::waitpid(children[static_cast<size_t>(rank)], &status, 0), children[static_cast<size_t>(rank)]);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "rank " << rank << " status " << status;
  }
}

TEST(Communicator, TwoProcessesAgreeExactly) { run_workers(2); }

TEST(Communicator, ThreeProcessesAgreeExactly) { run_workers(3); }

}  // namespace
}  // namespace dalle::distributed

#include "dalle/distributed/communicator.h"

#include <ATen/ATen.h>

#include <charconv>
#include <cstdlib>
#include <cstring>
#include <utility>

#include "backends.h"
#include "dalle/core/error.h"
#include "dalle/core/str.h"

namespace dalle::distributed {
namespace {

class Singleton : public Communicator {
 public:
  int rank() const override { return 0; }
  int world_size() const override { return 1; }
  void all_reduce_sum(Tensor&) override {}
  void broadcast(Tensor&, int root) override { TORCH_CHECK_VALUE(root == 0, "[broadcast] no rank ", root, " of 1"); }
  Tensor all_gather(const Tensor& tensor) override {
    return (tensor.dim() == 0 ? tensor.unsqueeze(0) : tensor).contiguous().clone();
  }
  void barrier() override {}
  void await(int) override {}
};

constexpr const char* kHint = "start the processes with torchrun, or set RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT";

[[noreturn]] void fail(const char* name, const std::string& expected, const char* got) {
  throw ConfigError(Problem{.place = str("environment variable ", name),
                            .expected = expected,
                            .got = got == nullptr ? "nothing" : str("'", got, "'"),
                            .hint = kHint});
}

int64_t environment_integer(const char* name, int64_t low, int64_t high) {
  const char* text = std::getenv(name);
  const std::string expected = str("an integer from ", low, " to ", high);
  if (text == nullptr) fail(name, expected, text);
  int64_t value = 0;
  const char* end = text + std::strlen(text);
  const auto [stop, error] = std::from_chars(text, end, value);
  if (error != std::errc{} || stop != end || value < low || value > high) fail(name, expected, text);
  return value;
}

}  // namespace

void Pending::wait() {
  if (const auto wait = std::exchange(wait_, nullptr)) wait();
}

Pending Communicator::start_all_reduce_sum(Tensor tensor) {
  all_reduce_sum(tensor);
  return {};
}

Pending Communicator::start_all_gather(Tensor whole, Tensor part) {
  whole.copy_(all_gather(part));
  return {};
}

Pending Communicator::start_reduce_scatter_sum(Tensor part, Tensor whole) {
  Tensor sum = whole.clone();
  all_reduce_sum(sum);
  part.copy_(sum.slice(0, rank() * part.size(0), (rank() + 1) * part.size(0)));
  return {};
}

std::unique_ptr<Communicator> make_singleton() { return std::make_unique<Singleton>(); }

std::unique_ptr<Communicator> init(at::Device device, std::chrono::seconds timeout) {
  if (std::getenv("WORLD_SIZE") == nullptr) return make_singleton();
  Launch launch;
  launch.world_size = static_cast<int>(environment_integer("WORLD_SIZE", 1, 1 << 20));
  if (launch.world_size == 1) return make_singleton();
  launch.rank = static_cast<int>(environment_integer("RANK", 0, launch.world_size - 1));
  launch.port = static_cast<uint16_t>(environment_integer("MASTER_PORT", 1, 65535));
  const char* address = std::getenv("MASTER_ADDR");
  if (address == nullptr || *address == '\0') fail("MASTER_ADDR", "the host name of rank 0", address);
  launch.address = address;
  launch.timeout = timeout;
  return device.is_cpu() ? make_gloo(launch) : make_nccl(launch, device);
}

}  // namespace dalle::distributed

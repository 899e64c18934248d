#include "dalle/distributed/self_test.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>

#include "dalle/core/error.h"
#include "dalle/core/str.h"

namespace dalle::distributed {
namespace {

constexpr int64_t kNumbers = int64_t{1} << 20;
constexpr int kRounds = 3;

void expect_result(const char* name, const Tensor& result, const Tensor& expected) {
  if (at::equal(result, expected)) return;  // waits for the device
  throw Error(Problem{str("self-test: ", name), str(expected.flatten()[0].item<float>(), " and so on"),
                      str(result.flatten()[0].item<float>(), " and so on"),
                      "ranks cannot rely on what they send each other: look at the network and its drivers"});
}

/// The seconds of a round, the best of some; the first, which makes connections, does not count.
double best_seconds(Communicator& communicator, const std::function<void()>& round) {
  double best = 1e9;
  for (int i = 0; i <= kRounds; ++i) {
    communicator.barrier();
    const auto start = std::chrono::steady_clock::now();
    round();
    const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - start;
    if (i > 0) best = std::min(best, spent.count());
  }
  return best;
}

/// `share`: bytes over the busiest wire, as a part of the whole's.
std::string line_of(const char* name, double seconds, int64_t bytes, int ranks, double share) {
  char text[160];
  const double speed = static_cast<double>(bytes) / seconds / 1e9;
  std::snprintf(text, sizeof text, "%s of %.1f MiB over %d ranks: %.2f ms, %.2f GB/s, bus bandwidth %.2f GB/s", name,
                static_cast<double>(bytes) / (1 << 20), ranks, 1e3 * seconds, speed, speed * share);
  return text;
}

}  // namespace

std::vector<std::string> self_test(Communicator& communicator, at::Device device) {
  const int ranks = communicator.world_size();
  if (ranks == 1) return {};
  const int64_t part_size = kNumbers / ranks;
  const auto options = at::TensorOptions(at::kFloat).device(device);
  const double rank = communicator.rank(), sum_of_ranks = ranks * (ranks - 1) / 2.0, part = (ranks - 1.0) / ranks;
  // Small whole numbers: sums are exact in any order.
  const Tensor positions = at::arange(part_size * ranks, options).remainder(1024);
  const Tensor own = positions + rank, sum = positions * ranks + sum_of_ranks;
  const int64_t first = communicator.rank() * part_size;
  const auto bytes = static_cast<int64_t>(own.nbytes());

  const Tensor reduced = at::empty_like(own), whole = at::empty_like(own), share = at::empty({part_size}, options);
  const double reduce_seconds = best_seconds(communicator, [&] {
    reduced.copy_(own);
    communicator.start_all_reduce_sum(reduced).wait();
    expect_result("all-reduce", reduced, sum);
  });
  const double gather_seconds = best_seconds(communicator, [&] {
    communicator.start_all_gather(whole, positions.slice(0, first, first + part_size)).wait();
    expect_result("all-gather", whole, positions);
  });
  const double scatter_seconds = best_seconds(communicator, [&] {
    communicator.start_reduce_scatter_sum(share, own).wait();
    expect_result("reduce-scatter", share, sum.slice(0, first, first + part_size));
  });
  return {line_of("all-reduce", reduce_seconds, bytes, ranks, 2 * part),
          line_of("all-gather", gather_seconds, bytes, ranks, part),
          line_of("reduce-scatter", scatter_seconds, bytes, ranks, part)};
}

}  // namespace dalle::distributed

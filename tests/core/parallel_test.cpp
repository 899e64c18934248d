// at::parallel_for is silently serial in translation units that are compiled without OpenMP; ours must not be.
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <mutex>
#include <set>
#include <thread>

namespace dalle {
namespace {

TEST(Parallel, ForRunsOnTwoThreads) {
  const int before = at::get_num_threads();
  at::set_num_threads(2);
  std::mutex mutex;
  std::set<std::thread::id> threads;
  std::atomic<int> arrived{0};
  at::parallel_for(0, 2, 1, [&](int64_t begin, int64_t end) {
    {
      const std::lock_guard lock(mutex);
      threads.insert(std::this_thread::get_id());
    }
    arrived += static_cast<int>(end - begin);
    // Both halves must be under way at once.
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (arrived < 2 && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
  });
  at::set_num_threads(before);
  EXPECT_EQ(arrived, 2);
  EXPECT_EQ(threads.size(), 2U);
}

}  // namespace
}  // namespace dalle

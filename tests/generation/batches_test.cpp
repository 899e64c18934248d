#include "dalle/generation/batches.h"

#include <c10/util/Exception.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>
#include <vector>

namespace dalle::generation {
namespace {

using ::testing::ElementsAre;

std::vector<int64_t> numbers(int64_t count) {
  std::vector<int64_t> out(static_cast<size_t>(count));
  std::iota(out.begin(), out.end(), int64_t{100});
  return out;
}

// A device that holds so many at a time.
struct Device {
  int64_t room;
  std::vector<int64_t> done, sizes;
  void operator()(std::span<const int64_t> batch) {
    if (static_cast<int64_t>(batch.size()) > room) throw c10::OutOfMemoryError({__func__, __FILE__, 1}, "no room");
    done.insert(done.end(), batch.begin(), batch.end());
    sizes.push_back(static_cast<int64_t>(batch.size()));
  }
};

TEST(Batches, TakeAllInOrder) {
  Device device{.room = 1000};
  EXPECT_EQ(in_batches(numbers(10), 4, std::ref(device)), 4);
  EXPECT_EQ(device.done, numbers(10));
  EXPECT_THAT(device.sizes, ElementsAre(4, 4, 2));
}

TEST(Batches, AreHalvedWhereMemoryEnds) {
  Device device{.room = 3};
  EXPECT_EQ(in_batches(numbers(10), 16, std::ref(device)), 2);
  EXPECT_EQ(device.done, numbers(10)) << "none left out, none twice";
  EXPECT_THAT(device.sizes, ElementsAre(2, 2, 2, 2, 2));
}

TEST(Batches, GiveUpWhereOneIsTooMuch) {
  Device device{.room = 0};
  EXPECT_THROW(in_batches(numbers(5), 4, std::ref(device)), c10::OutOfMemoryError);
  EXPECT_TRUE(device.done.empty());
}

TEST(BatchThatFits, TakesHalfOfWhatIsFree) {
  constexpr int64_t kMega = 1 << 20;
  BatchMemory memory{.available = 4096 * kMega, .fixed = 48 * kMega, .each = 20 * kMega};
  EXPECT_EQ(batch_that_fits(memory, 128), 100);
  EXPECT_EQ(batch_that_fits(memory, 64), 64) << "no more than gain speed, or are wanted";
  memory.num_processes = 2;
  EXPECT_EQ(batch_that_fits(memory, 128), 48);
  memory.each *= 2;  // two caches each, with guidance
  EXPECT_EQ(batch_that_fits(memory, 128), 24);
  memory.available = 0;
  EXPECT_EQ(batch_that_fits(memory, 128), 1) << "one is tried";
}

TEST(Batches, OtherErrorsPass) {
  EXPECT_THROW(in_batches(numbers(4), 4, [](auto) { throw std::runtime_error("other"); }), std::runtime_error);
  EXPECT_THROW(in_batches(numbers(4), 0, [](auto) {}), c10::ValueError);
}

}  // namespace
}  // namespace dalle::generation

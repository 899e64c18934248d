#include "dalle/data/prefetcher.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <stdexcept>
#include <string>

namespace dalle::data {
namespace {

TEST(Prefetcher, HandsItemsOutInOrderForAnyNumberOfThreads) {
  for (const int threads : {1, 2, 7}) {
    Prefetcher<std::string> items(threads, 3, 50, [](int64_t number) {
      if (number % 5 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));  // others overtake it
      return std::to_string(number);
    });
    for (int64_t i = 0; i < 50; ++i) EXPECT_EQ(items.next(), std::to_string(i));
  }
}

TEST(Prefetcher, MakesNoMoreThanAskedFor) {
  std::atomic<int64_t> made = 0;
  {
    Prefetcher<int64_t> items(4, 3, Prefetcher<int64_t>::kEndless, [&](int64_t number) {
      ++made;
      return number;
    });
    EXPECT_EQ(items.next(), 0);
    EXPECT_EQ(items.next(), 1);
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    EXPECT_LE(made, 2 + 3) << "two taken, three ahead";
  }
  made = 0;
  {
    Prefetcher<int64_t> items(4, 100, 6, [&](int64_t number) {
      ++made;
      return number;
    });
    for (int64_t i = 0; i < 6; ++i) EXPECT_EQ(items.next(), i);
  }
  EXPECT_EQ(made, 6);
}

TEST(Prefetcher, AnErrorComesAtItsItem) {
  Prefetcher<std::unique_ptr<int64_t>> items(3, 4, 10, [](int64_t number) {
    if (number == 2) throw std::runtime_error("number two");
    return std::make_unique<int64_t>(number);
  });
  EXPECT_EQ(*items.next(), 0);
  EXPECT_EQ(*items.next(), 1);
  EXPECT_THROW(items.next(), std::runtime_error);
  EXPECT_EQ(*items.next(), 3);
}

TEST(Prefetcher, CountsTheSecondsThatItsUserWaits) {
  Prefetcher<int> items(1, 1, 1, [](int64_t) {
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    return 1;
  });
  EXPECT_EQ(items.seconds_waited(), 0);
  items.next();
  EXPECT_GT(items.seconds_waited(), 0.01);
}

}  // namespace
}  // namespace dalle::data

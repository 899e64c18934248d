// Items made ahead by threads and handed out in order: item k is make(k), whatever the number of threads.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <limits>
#include <map>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>
#include <vector>

namespace dalle::data {

template <class T>
class Prefetcher {
 public:
  static constexpr int64_t kEndless = std::numeric_limits<int64_t>::max();

  /// `make` is called by many threads at once with the numbers 0 .. count - 1, at most `ahead` of them before next() has
  /// taken the first.
  Prefetcher(int num_threads, int64_t ahead, int64_t count, std::function<T(int64_t number)> make)
      : ahead_(ahead), count_(count), make_(std::move(make)) {
    try {
      for (int i = 0; i < num_threads; ++i) threads_.emplace_back([this] { work(); });
    } catch (...) {  // a thread could not be started: the ones that run must end before this object goes
      stop();
      throw;
    }
  }
  ~Prefetcher() { stop(); }
  Prefetcher(const Prefetcher&) = delete;
  Prefetcher& operator=(const Prefetcher&) = delete;

  /// The next item; waits for it. Rethrows what make() threw for it. Not to be called more than `count` times.
  T next() {
    const auto start = std::chrono::steady_clock::now();
    std::unique_lock lock(mutex_);
    arrival_.wait(lock, [&] { return ready_.contains(next_to_take_); });
    seconds_waited_ += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    Delivery delivery = std::move(ready_.extract(next_to_take_).mapped());
    ++next_to_take_;
    room_.notify_all();
    if (delivery.error) std::rethrow_exception(delivery.error);
    return std::move(*delivery.item);
  }

  double seconds_waited() const { return seconds_waited_; }  // in next(), in all

 private:
  struct Delivery {
    std::optional<T> item;
    std::exception_ptr error;
  };

  void work() {
    while (true) {
      int64_t number = 0;
      {
        std::unique_lock lock(mutex_);
        room_.wait(lock, [&] { return stopping_ || next_to_make_ < next_to_take_ + ahead_; });
        if (stopping_ || next_to_make_ >= count_) return;
        number = next_to_make_++;
      }
      Delivery delivery;
      try {
        delivery.item = make_(number);
      } catch (...) {
        delivery.error = std::current_exception();
      }
      const std::lock_guard lock(mutex_);
      ready_.emplace(number, std::move(delivery));
      arrival_.notify_all();
    }
  }

  void stop() {
    {
      const std::lock_guard lock(mutex_);
      stopping_ = true;
    }
    room_.notify_all();
    for (auto& thread : threads_) thread.join();
    threads_.clear();
  }

  const int64_t ahead_;
  const int64_t count_;
  const std::function<T(int64_t)> make_;
  double seconds_waited_ = 0;

  std::mutex mutex_;
  std::condition_variable room_;     // for threads: an item was taken
  std::condition_variable arrival_;  // for next(): an item is there
  std::map<int64_t, Delivery> ready_;
  int64_t next_to_make_ = 0;
  int64_t next_to_take_ = 0;
  bool stopping_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace dalle::data

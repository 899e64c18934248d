#include "dalle/training/step_simulation.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <functional>
#include <queue>
#include <utility>

namespace dalle::training {

Timeline simulate(std::span<const StepTask> tasks) {
  Timeline line{.start = std::vector<double>(tasks.size()), .finish = std::vector<double>(tasks.size())};
  std::vector<size_t> open(tasks.size());
  std::vector<std::vector<size_t>> followers(tasks.size());
  using Smallest = std::greater<>;
  std::array<std::priority_queue<size_t, std::vector<size_t>, Smallest>, kNumStreams> ready;
  std::array<bool, kNumStreams> working{};
  using Event = std::pair<double, size_t>;  // when a task is done
  std::priority_queue<Event, std::vector<Event>, Smallest> events;

  for (size_t i = 0; i < tasks.size(); ++i) {
    const StepTask& task = tasks[i];
    TORCH_CHECK_VALUE(task.seconds >= 0, "task ", task.name, " takes ", task.seconds, " seconds");
    for (const size_t before : task.after) {
      TORCH_CHECK_VALUE(before < i, "task ", task.name, " waits for one that is not listed before it");
      followers[before].push_back(i);
    }
    open[i] = task.after.size();
    const auto stream = static_cast<size_t>(task.stream);
    line.busy[stream] += task.seconds;
    line.bytes[stream] += task.bytes;
    if (open[i] == 0) ready[stream].push(i);
  }
  const auto start_ready = [&](double now) {
    for (size_t stream = 0; stream < kNumStreams; ++stream) {
      if (working[stream] || ready[stream].empty()) continue;
      const size_t task = ready[stream].top();
      ready[stream].pop();
      working[stream] = true;
      line.start[task] = now;
      line.finish[task] = now + tasks[task].seconds;
      events.emplace(line.finish[task], task);
    }
  };
  start_ready(0);
  while (!events.empty()) {
    const double now = events.top().first;
    // All that ends at once ends before anything is chosen.
    while (!events.empty() && events.top().first == now) {
      const size_t done = events.top().second;
      events.pop();
      working[static_cast<size_t>(tasks[done].stream)] = false;
      for (const size_t next : followers[done]) {
        if (--open[next] == 0) ready[static_cast<size_t>(tasks[next].stream)].push(next);
      }
    }
    line.seconds = now;
    start_ready(now);
  }
  return line;
}

}  // namespace dalle::training

// A training step as a discrete-event simulation: tasks on a compute stream and one network per level, each of which does
// one task at a time.
#pragma once

#include <array>
#include <span>
#include <string>
#include <vector>

namespace dalle::training {

/// kLink: within machines; kMachine: between them.
enum class Stream { kCompute, kLink, kMachine };
inline constexpr size_t kNumStreams = 3;

struct StepTask {
  std::string name;
  Stream stream = Stream::kCompute;
  double seconds = 0;
  double bytes = 0;           // sent, by a device (kLink) or a machine (kMachine)
  std::vector<size_t> after;  // earlier tasks that must be done
};

struct Timeline {
  double seconds = 0;                       // until the last task is done
  std::array<double, kNumStreams> busy{};   // seconds of work per stream
  std::array<double, kNumStreams> bytes{};  // sent per stream
  std::vector<double> start, finish;        // of each task

  /// Seconds in which the compute stream waits.
  double waiting() const { return seconds - busy[static_cast<size_t>(Stream::kCompute)]; }
};

/// A free stream takes, of its tasks that may start, the one listed first. Throws c10::ValueError where `after` names a task
/// that is not earlier in the list.
Timeline simulate(std::span<const StepTask> tasks);

}  // namespace dalle::training

// A trace of some training steps by LibTorch's profiler, for chrome://tracing or ui.perfetto.dev.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <vector>

namespace dalle::training {

/// Time of one operator, without that of the operators it calls.
struct OperatorTime {
  std::string name;
  double milliseconds = 0;
  int64_t calls = 0;
};

/// Runs `work` under the profiler: its operators on the CPU, most time first.
std::vector<OperatorTime> profile(const std::function<void()>& work);

/// A table of the first thirty or so, per step of `steps`.
std::string describe_profile(const std::vector<OperatorTime>& times, int64_t steps, const std::string& title);

class Profiler {
 public:
  /// Records the steps first_step .. first_step + num_steps - 1 and writes `file`; first_step < 0 records nothing.
  Profiler(int64_t first_step, int64_t num_steps, std::filesystem::path file);
  ~Profiler();
  Profiler(const Profiler&) = delete;
  Profiler& operator=(const Profiler&) = delete;

  void before_step(int64_t step);
  /// `steps_done` counts the step that has just ended.
  void after_step(int64_t steps_done);

 private:
  void finish();
  int64_t first_step_;
  int64_t num_steps_;
  std::filesystem::path file_;
  bool is_recording_ = false;
};

}  // namespace dalle::training

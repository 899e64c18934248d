// A trace of some training steps by LibTorch's profiler, for chrome://tracing or ui.perfetto.dev.
#pragma once

#include <cstdint>
#include <filesystem>

namespace dalle::training {

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

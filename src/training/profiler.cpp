#include "dalle/training/profiler.h"

#include <ATen/Context.h>
#include <torch/csrc/autograd/profiler_kineto.h>

#include <set>

#include "dalle/core/logging.h"

namespace dalle::training {

namespace kineto = torch::profiler::impl;

Profiler::Profiler(int64_t first_step, int64_t num_steps, std::filesystem::path file)
    : first_step_(first_step), num_steps_(num_steps), file_(std::move(file)) {}

Profiler::~Profiler() {
  if (is_recording_) finish();
}

void Profiler::before_step(int64_t step) {
  if (first_step_ < 0 || step != first_step_) return;
  std::set<kineto::ActivityType> activities{kineto::ActivityType::CPU};
  if (at::hasCUDA()) activities.insert(kineto::ActivityType::CUDA);
  const kineto::ProfilerConfig config(kineto::ProfilerState::KINETO, /*report_input_shapes=*/true);
  torch::autograd::profiler::prepareProfiler(config, activities);
  torch::autograd::profiler::enableProfiler(config, activities);
  is_recording_ = true;
}

void Profiler::after_step(int64_t steps_done) {
  if (is_recording_ && steps_done >= first_step_ + num_steps_) finish();
}

void Profiler::finish() {
  is_recording_ = false;
  const auto result = torch::autograd::profiler::disableProfiler();
  result->save(file_.string());
  log_info("profiler trace: " + file_.string() + " (open in ui.perfetto.dev)");
}

}  // namespace dalle::training

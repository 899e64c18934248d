#include "dalle/training/profiler.h"

#include <ATen/Context.h>
#include <torch/csrc/autograd/profiler_kineto.h>

#include <algorithm>
#include <iomanip>
#include <map>
#include <set>
#include <sstream>

#include "dalle/core/logging.h"

namespace dalle::training {

namespace kineto = torch::profiler::impl;

namespace {

void start_recording(bool with_shapes) {
  std::set<kineto::ActivityType> activities{kineto::ActivityType::CPU};
  if (at::hasCUDA()) activities.insert(kineto::ActivityType::CUDA);
  const kineto::ProfilerConfig config(kineto::ProfilerState::KINETO, with_shapes);
  torch::autograd::profiler::prepareProfiler(config, activities);
  torch::autograd::profiler::enableProfiler(config, activities);
}

struct Span {
  std::string name;
  uint64_t begin, end;
};

// Takes each span's time from the one it lies in; spans of one thread nest.
void add_self_times(std::vector<Span> spans, std::map<std::string, OperatorTime>& totals) {
  std::sort(spans.begin(), spans.end(),
            [](const Span& a, const Span& b) { return a.begin != b.begin ? a.begin < b.begin : a.end > b.end; });
  std::vector<const Span*> open;
  for (const auto& span : spans) {
    const double milliseconds = static_cast<double>(span.end - span.begin) * 1e-6;
    while (!open.empty() && open.back()->end <= span.begin) open.pop_back();
    if (!open.empty()) totals[open.back()->name].milliseconds -= milliseconds;
    auto& total = totals[span.name];
    total.milliseconds += milliseconds;
    ++total.calls;
    open.push_back(&span);
  }
}

}  // namespace

std::vector<OperatorTime> profile(const std::function<void()>& work) {
  start_recording(/*with_shapes=*/false);
  work();
  const auto result = torch::autograd::profiler::disableProfiler();
  std::map<uint64_t, std::vector<Span>> by_thread;
  for (const auto& event : result->events()) {
    if (event.deviceType() != c10::DeviceType::CPU) continue;
    by_thread[event.startThreadId()].push_back({event.name(), event.startNs(), event.endNs()});
  }
  std::map<std::string, OperatorTime> totals;
  for (auto& [thread, spans] : by_thread) add_self_times(std::move(spans), totals);
  std::vector<OperatorTime> out;
  for (auto& [name, time] : totals) out.push_back({name, time.milliseconds, time.calls});
  std::sort(out.begin(), out.end(), [](const auto& a, const auto& b) { return a.milliseconds > b.milliseconds; });
  return out;
}

std::string describe_profile(const std::vector<OperatorTime>& times, int64_t steps, const std::string& title) {
  constexpr size_t kShown = 30;
  const auto per_step = [&](double value) { return value / static_cast<double>(steps); };
  double sum = 0, rest = 0;
  for (size_t i = 0; i < times.size(); ++i) (i < kShown ? sum : rest) += times[i].milliseconds;
  std::ostringstream out;
  out << title << ": " << std::fixed << std::setprecision(1) << per_step(sum + rest)
      << " ms a step\n      ms    share   calls  operator\n";
  const auto line = [&](double milliseconds, double calls, const std::string& name) {
    out << std::setw(8) << std::setprecision(2) << per_step(milliseconds) << std::setw(8) << std::setprecision(1)
        << 100 * milliseconds / (sum + rest) << "%" << std::setw(8) << per_step(calls) << "  " << name << "\n";
  };
  for (size_t i = 0; i < std::min(kShown, times.size()); ++i) {
    line(times[i].milliseconds, static_cast<double>(times[i].calls), times[i].name);
  }
  if (times.size() > kShown) line(rest, 0, "all others");
  return out.str();
}

Profiler::Profiler(int64_t first_step, int64_t num_steps, std::filesystem::path file)
    : first_step_(first_step), num_steps_(num_steps), file_(std::move(file)) {}

Profiler::~Profiler() {
  if (is_recording_) finish();
}

void Profiler::before_step(int64_t step) {
  if (first_step_ < 0 || step != first_step_) return;
  start_recording(/*with_shapes=*/true);
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

#include "dalle/training/bench.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <chrono>
#include <iostream>
#include <nlohmann/json.hpp>

#include "dalle/core/device.h"
#include "dalle/core/error.h"
#include "dalle/core/tensor_memory.h"
#include "dalle/training/bench_subjects.h"
#include "dalle/training/profiler.h"

namespace dalle::training {
namespace {

double seconds_of(const std::function<void()>& step, at::Device device) {
  const auto begin = std::chrono::steady_clock::now();
  step();
  if (device.is_cuda()) at::zeros({1}, device).item<float>();  // waits for the device
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count();
}

double quantile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(share * static_cast<double>(values.size() - 1) + 0.5)];
}

double median_ratio(const std::vector<double>& reference, const std::vector<double>& seconds) {
  std::vector<double> ratios;
  for (size_t round = 0; round < seconds.size(); ++round) ratios.push_back(reference[round] / seconds[round]);
  return quantile(ratios, 0.5);
}

// seconds[subject][round]; every other round goes through the subjects backwards, so that drift hits all alike.
std::vector<std::vector<double>> time_rounds(const std::vector<BenchSubject>& subjects, int rounds, at::Device device) {
  std::vector<std::vector<double>> seconds(subjects.size());
  for (int round = 0; round < rounds; ++round) {
    for (size_t i = 0; i < subjects.size(); ++i) {
      const size_t turn = round % 2 == 0 ? i : subjects.size() - 1 - i;
      seconds[turn].push_back(seconds_of(subjects[turn].step, device));
    }
  }
  return seconds;
}

void print_profile(const BenchSubject& subject, int steps, const std::string& config) {
  const auto times = profile([&] {
    for (int i = 0; i < steps; ++i) subject.step();
  });
  std::cout << describe_profile(times, steps, config + ", " + subject.impl);
}

void run_config(const BenchConfig& config, const BenchOptions& options, at::Device device) {
  const std::vector<BenchSubject> subjects = config.build(options, device);
  std::vector<int64_t> peak(subjects.size());
  for (size_t i = 0; i < subjects.size(); ++i) {
    for (int step = 0; step < options.warmup; ++step) subjects[i].step();
    peak[i] = peak_tensor_bytes(subjects[i].step);
  }
  if (options.profile) {
    for (const auto& subject : subjects) print_profile(subject, options.rounds, config.name);
    return;
  }
  const auto seconds = time_rounds(subjects, options.rounds, device);
  for (size_t i = 0; i < subjects.size(); ++i) {
    const double items = static_cast<double>(subjects[i].items), median = quantile(seconds[i], 0.5);
    nlohmann::ordered_json line{{"job", enum_name(options.job)},
                                {"config", config.name},
                                {"impl", subjects[i].impl},
                                {"unit", config.unit},
                                {"median", items / median},
                                {"best", items / quantile(seconds[i], 0)},
                                {"spread", (quantile(seconds[i], 0.9) - quantile(seconds[i], 0.1)) / median},
                                {"rounds", options.rounds},
                                {"threads", options.threads},
                                {"device", describe_device(device)},
                                {"peak_mib", static_cast<double>(peak[i]) / (1 << 20)}};
    if (i > 0) {
      line["ratio_to_ref"] = median_ratio(seconds[0], seconds[i]);
      if (peak[0] > 0) line["peak_to_ref"] = static_cast<double>(peak[i]) / static_cast<double>(peak[0]);
      line["ref"] = subjects[0].impl;
    }
    if (subjects[i].facts) {
      for (const auto& [name, value] : subjects[i].facts()) line[name] = value;
    }
    std::cout << line.dump() << std::endl;
  }
}

}  // namespace

int run_bench(const BenchOptions& options) {
  set_num_threads(options.threads);
  const at::Device device = select_device(options.device);
  std::string known;
  bool found = false;
  for (const auto& config : bench_configs()) {
    if (config.job != options.job) continue;
    known += (known.empty() ? "" : ", ") + config.name;
    if (config.name.find(options.config) == std::string::npos) continue;
    found = true;
    run_config(config, options, device);
  }
  if (!found) throw ConfigError(Problem{"--config", "part of one of: " + known, "'" + options.config + "'", ""});
  return 0;
}

}  // namespace dalle::training

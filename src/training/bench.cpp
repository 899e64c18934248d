#include "dalle/training/bench.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <iostream>
#include <nlohmann/json.hpp>
#include <numeric>

#include "dalle/core/device.h"
#include "dalle/core/error.h"
#include "dalle/core/tensor_memory.h"
#include "dalle/training/bench_subjects.h"
#include "dalle/training/profiler.h"

namespace dalle::training {
namespace {

struct Times {
  std::vector<double> wall, cpu;  // seconds of each round
};

void time_round(const std::function<void()>& step, at::Device device, Times& times) {
  const double cpu = cpu_seconds();
  const auto begin = std::chrono::steady_clock::now();
  step();
  if (device.is_cuda()) at::zeros({1}, device).item<float>();  // waits for the device
  times.wall.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - begin).count());
  times.cpu.push_back(cpu_seconds() - cpu);
}

double quantile(std::vector<double> values, double share) {
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(share * static_cast<double>(values.size() - 1) + 0.5)];
}

// The median of the rounds that had nearly their best share of the processor: what a quiet machine would show.
double clean_median(const Times& times) {
  std::vector<double> shares, clean;
  for (size_t i = 0; i < times.wall.size(); ++i) shares.push_back(times.cpu[i] / times.wall[i]);
  const double best = *std::max_element(shares.begin(), shares.end());
  for (size_t i = 0; i < shares.size(); ++i) {
    if (shares[i] >= 0.9 * best) clean.push_back(times.wall[i]);
  }
  return quantile(clean, 0.5);
}

double sum(const std::vector<double>& values) { return std::accumulate(values.begin(), values.end(), 0.0); }

double median_ratio(const std::vector<double>& reference, const std::vector<double>& seconds) {
  std::vector<double> ratios;
  for (size_t round = 0; round < seconds.size(); ++round) ratios.push_back(reference[round] / seconds[round]);
  return quantile(ratios, 0.5);
}

// Of each subject; every other round goes through the subjects backwards, so that drift hits all alike.
std::vector<Times> time_rounds(const std::vector<BenchSubject>& subjects, int rounds, at::Device device) {
  std::vector<Times> times(subjects.size());
  for (int round = 0; round < rounds; ++round) {
    for (size_t i = 0; i < subjects.size(); ++i) {
      const size_t turn = round % 2 == 0 ? i : subjects.size() - 1 - i;
      time_round(subjects[turn].step, device, times[turn]);
    }
  }
  return times;
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
  const auto times = time_rounds(subjects, options.rounds, device);
  std::string job(enum_name(options.job));
  std::replace(job.begin(), job.end(), '-', '_');  // as other programs' lines have it
  const int threads = options.threads > 0 ? options.threads : at::get_num_threads();
  for (size_t i = 0; i < subjects.size(); ++i) {
    const std::vector<double>& seconds = times[i].wall;
    const double items = static_cast<double>(subjects[i].items), median = quantile(seconds, 0.5);
    nlohmann::ordered_json line{{"job", job},
                                {"config", config.name},
                                {"impl", subjects[i].impl},
                                {"unit", config.unit},
                                {"median", items / median},
                                {"best", items / quantile(seconds, 0)},
                                {"spread", (quantile(seconds, 0.9) - quantile(seconds, 0.1)) / median},
                                {"n", options.rounds},
                                {"sec_per_call", median},
                                {"items_per_call", subjects[i].items},
                                {"threads", threads},
                                {"device", describe_device(device)},
                                {"peak_mib", static_cast<double>(peak[i]) / (1 << 20)}};
    if (device.is_cpu()) {
      line["cpu_share"] = sum(times[i].cpu) / sum(seconds) / threads;
      line["clean"] = items / clean_median(times[i]);
    }
    if (i > 0) {
      line["ratio_to_ref"] = median_ratio(times[0].wall, seconds);
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

double cpu_seconds() { return static_cast<double>(std::clock()) / CLOCKS_PER_SEC; }

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

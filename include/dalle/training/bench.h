// dalle-bench: what the machine does with our training steps and samplers. One JSON line per implementation:
// job, config, impl, unit, median, best, spread and, from the second on, ratio_to_ref. Implementations are timed in
// interleaved rounds of one process, so that noise hits all alike.
#pragma once

#include <string>
#include <vector>

#include "dalle/core/precision.h"

namespace dalle::training {

enum class BenchJob { kDvaeTrain, kPriorTrain, kSample };

struct BenchOptions {
  BenchJob job = BenchJob::kDvaeTrain;
  std::string config;
  std::vector<Precision> precision = {Precision::kF32, Precision::kBf16};
  int threads = 1;
  int rounds = 5;
  int warmup = 2;
  std::string device = "auto";

  static void visit_fields(auto& self, auto&& field) {
    field("job", self.job, "what is measured");
    field("config", self.config, "run only the configs whose name contains this; empty = all of the job");
    field("precision", self.precision, "number formats to compare; the first is the reference");
    field("threads", self.threads, "CPU threads; 0 = all", {.min = 0});
    field("rounds", self.rounds, "interleaved rounds", {.min = 1});
    field("warmup", self.warmup, "steps before timing starts", {.min = 0});
    field("device", self.device, "auto, cpu, cuda or cuda:INDEX");
  }
};

int run_bench(const BenchOptions& options);

}  // namespace dalle::training

namespace dalle {
template <>
struct EnumNames<training::BenchJob> {
  static constexpr EnumName<training::BenchJob> values[] = {{training::BenchJob::kDvaeTrain, "dvae-train"},
                                                            {training::BenchJob::kPriorTrain, "prior-train"},
                                                            {training::BenchJob::kSample, "sample"}};
};
}  // namespace dalle

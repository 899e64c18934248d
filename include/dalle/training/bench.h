// dalle-bench: what the machine does with our training steps, samplers, CLIP and tokenizer. One JSON line per implementation:
// job (with _ for -), config, impl, unit; median, best and spread of n rounds; sec_per_call of items_per_call; threads, device; on a
// CPU cpu_share and clean (docs/performance.md); peak_mib (tensors allocated during a step at once) and, from the second on,
// ratio_to_ref and peak_to_ref (where the first allocates tensors). Implementations are timed in interleaved rounds of one process,
// so that noise hits all alike.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "dalle/core/precision.h"

namespace dalle::training {

enum class BenchJob { kDvaeTrain, kRelaxation, kAttention, kPriorTrain, kSample, kClipScore, kTokenize };

struct BenchOptions {
  BenchJob job = BenchJob::kDvaeTrain;
  std::string config;
  std::vector<Precision> precision = {Precision::kF32, Precision::kBf16};
  std::optional<Precision> relaxation_precision;
  int threads = 1;
  int rounds = 5;
  int warmup = 2;
  std::string device = "auto";
  bool profile = false;

  static void visit_fields(auto& self, auto&& field) {
    field("job", self.job, "what is measured");
    field("config", self.config, "run only the configs whose name contains this; empty = all of the job");
    field("precision", self.precision, "number formats to compare; the first is the reference");
    field("relaxation_precision", self.relaxation_precision,
          "dvae-train: number format of the two convolutions around the relaxation; null = as --precision");
    field("threads", self.threads, "CPU threads; 0 = all", {.min = 0});
    field("rounds", self.rounds, "interleaved rounds", {.min = 1});
    field("warmup", self.warmup, "steps before timing starts", {.min = 0});
    field("device", self.device, "auto, cpu, cuda or cuda:INDEX");
    field("profile", self.profile,
          "print where the time of --rounds steps goes, operator by operator, instead of timing");
  }
};

int run_bench(const BenchOptions& options);

}  // namespace dalle::training

namespace dalle {
template <>
struct EnumNames<training::BenchJob> {
  static constexpr EnumName<training::BenchJob> values[] = {
      {training::BenchJob::kDvaeTrain, "dvae-train"}, {training::BenchJob::kRelaxation, "relaxation"},
      {training::BenchJob::kAttention, "attention"},  {training::BenchJob::kPriorTrain, "prior-train"},
      {training::BenchJob::kSample, "sample"},        {training::BenchJob::kClipScore, "clip-score"},
      {training::BenchJob::kTokenize, "tokenize"}};
};
}  // namespace dalle

// What dalle-bench times: named sizes of a job, with the implementations compared there. Names and sizes follow the
// published re-implementations that we compare with (docs/performance.md).
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "dalle/training/bench.h"

namespace dalle::training {

/// More numbers of a subject's line.
using BenchFacts = std::vector<std::pair<std::string, double>>;

/// One implementation: a call of `step` does `items` units of work. `facts`, where given, is called after the last round.
struct BenchSubject {
  std::string impl;
  std::function<void()> step;
  int64_t items = 0;
  std::function<BenchFacts()> facts = {};
};

struct BenchConfig {
  BenchJob job;
  std::string name;
  std::string unit;
  /// Makes the models. The first subject is the reference of the ratios.
  std::function<std::vector<BenchSubject>(const BenchOptions&, at::Device)> build;
};

std::vector<BenchConfig> bench_configs();

/// Of the processor, all threads of this process together.
double cpu_seconds();

/// Scoring of pictures against captions by CLIP ViT-B/32, batch 32.
std::vector<BenchConfig> clip_bench_configs();

/// Sampling at several sizes and batches, with the share of the machine's limit that it reaches.
std::vector<BenchConfig> sample_bench_configs();

/// Our tokenizer beside SentencePiece's encoder, with and without BPE dropout; one thread.
BenchConfig tokenizer_bench_config();

}  // namespace dalle::training

// The figures of the demo, each beside its bar: what scripts/demo.sh prints at the end.
#pragma once

#include <filesystem>

#include "dalle/data/data_config.h"

namespace dalle::training {

struct DemoReportOptions {
  std::filesystem::path run;
  std::filesystem::path samples;
  std::filesystem::path data;

  static void visit_fields(auto& self, auto&& field) {
    field("run", self.run, "the demo's folder, with dvae/, clip/ and prior/ run directories");
    field("samples", self.samples, "output of sample-and-rerank for training captions");
    field("data", self.data, "the training shard that the captions come from");
  }
};

/// Reads metrics.jsonl of the three runs and scores.json, compares each kept picture with the real ones, prints a table
/// and returns 0 where every bar is met, 1 where one is not.
int run_demo_report(const DemoReportOptions& options);

}  // namespace dalle::training

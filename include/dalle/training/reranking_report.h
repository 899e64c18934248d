// Does reranking help? Judges that are not the reranker look at all candidates of finished sample-and-rerank runs
// (docs/reranking.md).
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "dalle/core/precision.h"

namespace dalle::training {

struct RerankingReportOptions {
  std::vector<std::filesystem::path> samples;
  std::filesystem::path data;
  std::filesystem::path judge;
  Precision precision = Precision::kF32;
  std::string device = "auto";
  int threads = 0;

  static void visit_fields(auto& self, auto&& field) {
    field("samples", self.samples,
          "output folders of sample-and-rerank for training captions; one table row and judge each");
    field("data", self.data, "the training shard that the captions come from");
    field("judge", self.judge,
          "another CLIP than the reranker: checkpoint folder or run directory; empty = pixels only");
    field("precision", self.precision, "number format of the judge's matrix work");
    field("device", self.device, "auto, cpu, cuda or cuda:INDEX");
    field("threads", self.threads, "CPU threads; 0 = all", {.min = 0});
  }
  void validate(const std::string& place) const;
};

struct RerankingReport {
  std::string table;      // a line for each folder and judge
  bool all_help = false;  // each gain is above two standard errors
};

/// Throws ConfigError where the judge is the reranker itself, DataError where a folder is not that of a finished run or a
/// caption has no training picture.
RerankingReport make_reranking_report(const RerankingReportOptions& options);

}  // namespace dalle::training

// What reranking gained in finished sample-and-rerank runs, by judges that are not the reranker.
#include "dalle/training/reranking_report.h"

#include <iostream>

#include "dalle/cli/command.h"

int main(int argc, char** argv) {
  using namespace dalle::training;
  return dalle::cli::run_flags_command<RerankingReportOptions>(
      "reranking-report", "Compare the best candidate with a random one, by judges that are not the reranker.", "",
      argc, argv, [](const RerankingReportOptions& options) {
        const auto report = make_reranking_report(options);
        std::cout << report.table;
        return report.all_help ? dalle::cli::kDone : dalle::cli::kFailed;
      });
}

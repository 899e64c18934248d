// The table and the picture of scripts/ablations.sh.
#include "dalle/training/ablation_report.h"

#include <iostream>

#include "dalle/cli/command.h"

int main(int argc, char** argv) {
  using namespace dalle::training;
  return dalle::cli::run_flags_command<AblationReportOptions>("ablation-report",
                                                              "Compare the runs of scripts/ablations.sh.", "", argc,
                                                              argv, [](const AblationReportOptions& options) {
                                                                std::cout << make_ablation_report(options);
                                                                return 0;
                                                              });
}

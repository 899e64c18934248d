// The demo's figures beside their bars.
#include "dalle/training/demo_report.h"
#include "dalle/cli/command.h"

int main(int argc, char** argv) {
  using namespace dalle::training;
  return dalle::cli::run_flags_command<DemoReportOptions>(
      "demo-report", "Print the demo's figures, each beside its bar.", "", argc, argv, run_demo_report);
}

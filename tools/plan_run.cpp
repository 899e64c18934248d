// What a run would cost, before it is launched.
#include "dalle/training/plan_run.h"
#include "dalle/cli/command.h"

int main(int argc, char** argv) {
  using namespace dalle::training;
  return dalle::cli::run_flags_command<PlanRunOptions>(
      "plan-run", "Memory, bytes sent and time of training a prior on many devices, before it is launched.", "config",
      argc, argv, run_plan);
}

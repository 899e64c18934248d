// What is in a checkpoint.
#include "dalle/cli/command.h"
#include "dalle/models/inspect.h"

int main(int argc, char** argv) {
  using namespace dalle::models;
  return dalle::cli::run_flags_command<InspectOptions>("inspect-checkpoint",
                                                       "Show what is in a checkpoint and whether it is whole.",
                                                       "checkpoint", argc, argv, run_inspect);
}

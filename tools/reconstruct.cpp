// Pictures through the dVAE and back, side by side.
#include "dalle/cli/command.h"
#include "dalle/generation/reconstruct_job.h"

int main(int argc, char** argv) {
  using namespace dalle::generation;
  return dalle::cli::run_flags_command<ReconstructOptions>(
      "reconstruct", "Pass pictures through the dVAE and show them beside their reconstruction.", "images", argc, argv,
      run_reconstruct);
}

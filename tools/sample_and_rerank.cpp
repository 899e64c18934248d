// Captions -> candidates -> pictures, best first.
#include "dalle/cli/command.h"
#include "dalle/generation/sample_job.h"

int main(int argc, char** argv) {
  using namespace dalle::generation;
  return dalle::cli::run_flags_command<SampleOptions>(
      "sample-and-rerank", "Draw candidate pictures for captions, score them, and show the best first.", "", argc, argv,
      run_sample_job);
}

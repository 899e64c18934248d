// Benchmarks of training steps, sampling, CLIP and the tokenizer.
#include "dalle/cli/command.h"
#include "dalle/training/bench.h"

int main(int argc, char** argv) {
  using namespace dalle::training;
  return dalle::cli::run_flags_command<BenchOptions>(
      "dalle-bench",
      "Time training steps, sampling, CLIP and the tokenizer; one JSON line per implementation, interleaved rounds.",
      "job", argc, argv, run_bench);
}

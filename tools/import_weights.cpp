// Published weights of other programs -> a checkpoint.
#include "dalle/cli/command.h"
#include "dalle/interop/weight_commands.h"

int main(int argc, char** argv) {
  using namespace dalle::interop;
  return dalle::cli::run_flags_command<ImportOptions>(
      "import-weights", "Convert published weights into a checkpoint. Nothing in the files is ever run.", "what", argc,
      argv, run_import_weights);
}

// A checkpoint -> one safetensors file or a PyTorch state dict.
#include "dalle/cli/command.h"
#include "dalle/interop/weight_commands.h"

int main(int argc, char** argv) {
  using namespace dalle::interop;
  return dalle::cli::run_flags_command<ExportOptions>(
      "export-weights", "Write a checkpoint's weights as one safetensors file or as a PyTorch state dict.",
      "checkpoint", argc, argv, run_export_weights);
}

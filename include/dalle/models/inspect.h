// What is in a checkpoint, for people: inspect-checkpoint.
#pragma once

#include <filesystem>
#include <string>

namespace dalle::models {

struct InspectOptions {
  std::filesystem::path checkpoint;
  bool tensors = false;
  bool verify = false;
  std::string tokenize;

  static void visit_fields(auto& self, auto&& field) {
    field("checkpoint", self.checkpoint, "checkpoint folder, run directory or .safetensors file");
    field("tensors", self.tensors, "list every tensor with its shape");
    field("verify", self.verify, "read every file and compare it with the manifest");
    field("tokenize", self.tokenize, "show the pieces that the checkpoint's tokenizer makes of this text");
  }
};

/// Prints kind, step, identities, sizes and the model's config. Throws as load_checkpoint.
int run_inspect(const InspectOptions& options);

}  // namespace dalle::models

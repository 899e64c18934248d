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
    field("checkpoint", self.checkpoint,
          "checkpoint folder, run directory, .safetensors file, or a tokenizer.model or its folder");
    field("tensors", self.tensors, "list every tensor with its shape");
    field("verify", self.verify, "read every file and compare it with the manifest");
    field("tokenize", self.tokenize, "show the pieces that the checkpoint's tokenizer makes of this text");
  }
};

/// Prints kind, step, identities, sizes and the model's config; of a tokenizer alone its size and identity. Throws as
/// load_checkpoint, and ConfigError where --tokenize has no tokenizer or its text is not UTF-8.
int run_inspect(const InspectOptions& options);

}  // namespace dalle::models

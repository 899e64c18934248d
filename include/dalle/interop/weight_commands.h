// The commands import-weights and export-weights: other programs' weight files to checkpoints of ours and back.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace dalle::interop {

struct ImportOptions {
  std::vector<std::string> what;
  std::filesystem::path encoder;
  std::filesystem::path decoder;
  std::filesystem::path tokenizer;
  bool quick_gelu = false;
  std::filesystem::path out;
  int64_t image_size = 256;

  static void visit_fields(auto& self, auto&& field) {
    field("what", self.what,
          "whose weights: openai-dvae (the discrete VAE of openai/DALL-E; with --encoder and --decoder), openai-clip "
          "FILE (of "
          "openai/CLIP) or open-clip FILE (of open_clip)");
    field("encoder", self.encoder,
          "openai-dvae: encoder.pkl, or another torch.save or .safetensors file with the encoder");
    field("decoder", self.decoder,
          "openai-dvae: decoder.pkl, or another torch.save or .safetensors file with the decoder");
    field("tokenizer", self.tokenizer,
          "CLIPs: the vocabulary file bpe_simple_vocab_16e6.txt.gz (scripts/clip_vocabulary.sh gets it), kept in the "
          "checkpoint");
    field("quick_gelu", self.quick_gelu,
          "open-clip: the model is one of open_clip's \"-quickgelu\"; without it the activation is GELU. OpenAI's "
          "always have it");
    field("out", self.out, "checkpoint folder to make, or one FILE.safetensors; must not exist");
    field("image_size", self.image_size,
          "openai-dvae: side of the pictures that the model is for; any multiple of 8 works",
          {.min = 8, .unit = "pixels"});
  }
  void validate(const std::string& place) const;
};

/// Reads the files without running anything in them and writes a checkpoint that every command takes.
int run_import_weights(const ImportOptions& options);

struct ExportOptions {
  std::filesystem::path checkpoint;
  std::filesystem::path out;
  bool raw_weights = false;

  static void visit_fields(auto& self, auto&& field) {
    field("checkpoint", self.checkpoint, "checkpoint folder, run directory or .safetensors file");
    field("out", self.out,
          "FILE.safetensors (with config and tokenizer: a checkpoint of its own) or FILE.pt (a PyTorch state dict: "
          "weights alone); must not exist");
    field("raw_weights", self.raw_weights, "the last weights instead of the averaged ones");
  }
  void validate(const std::string& place) const;
};

int run_export_weights(const ExportOptions& options);

}  // namespace dalle::interop

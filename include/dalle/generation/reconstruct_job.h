// reconstruct: pictures through the dVAE and back, prepared as in the published notebook: shorter side to the size with
// Lanczos, centre crop, smaller pictures refused.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "dalle/core/precision.h"

namespace dalle::generation {

struct ReconstructOptions {
  std::vector<std::filesystem::path> images;
  std::filesystem::path dvae;
  std::filesystem::path out;
  int64_t size = 0;
  bool save_tokens = false;
  bool raw_weights = false;
  Precision precision = Precision::kAuto;
  std::string device = "auto";
  int threads = 0;

  static void visit_fields(auto& self, auto&& field) {
    field("images", self.images, "picture files: PNG, JPEG or WebP");
    field("dvae", self.dvae, "the dVAE: checkpoint folder, run directory or .safetensors file (required)");
    field("out", self.out, "folder for the results; must not exist or be empty (required)");
    field("size", self.size,
          "the shorter side is resized to it (Lanczos), then the centre is cropped; a multiple of the dVAE's "
          "downsampling; 0 = the size the dVAE was trained with",
          {.min = 0, .unit = "pixels"});
    field("save_tokens", self.save_tokens, "write NAME.tokens.json: the grid of image tokens, a list of rows");
    field("raw_weights", self.raw_weights, "use the last weights instead of the averaged ones");
    field("precision", self.precision, "number format of matrix work");
    field("device", self.device, "auto, cpu, cuda or cuda:INDEX");
    field("threads", self.threads, "CPU threads; 0 = all", {.min = 0});
  }
  void validate(const std::string& place) const;
};

/// Writes into `out`, for each picture, NAME.png (the picture and its reconstruction side by side) and, where asked for,
/// NAME.tokens.json; then contact-sheet.png and reconstruction.json. Prints PSNR and SSIM of each. `out` gets all of it
/// or nothing. Throws ConfigError for a size that the dVAE cannot divide, DataError for files that are no pictures or
/// too small, FileError where `out` cannot be written.
int run_reconstruct(const ReconstructOptions& options);

}  // namespace dalle::generation

// Commands on pictures that people bring: reconstruct (through the dVAE) and score-images (by CLIP).
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
    field("images", self.images, "picture files");
    field("dvae", self.dvae, "checkpoint folder, run directory or .safetensors file");
    field("out", self.out, "folder for the results; must not exist or be empty");
    field("size", self.size, "shorter side is resized to it (Lanczos), then centre crop; 0 = the dVAE's picture size",
          {.min = 0, .unit = "pixels"});
    field("save_tokens", self.save_tokens, "write NAME.tokens.json, one grid per picture");
    field("raw_weights", self.raw_weights, "use the last weights instead of the averaged ones");
    field("precision", self.precision, "number format of matrix work");
    field("device", self.device, "auto, cpu, cuda or cuda:INDEX");
    field("threads", self.threads, "CPU threads; 0 = all", {.min = 0});
  }
  void validate(const std::string& place) const;
};

/// Writes NAME.png (original and reconstruction side by side), contact-sheet.png, and prints PSNR and SSIM per picture.
/// Pictures whose shorter side is below the size are refused, as in the published notebook.
int run_reconstruct(const ReconstructOptions& options);

struct ScoreImagesOptions {
  std::vector<std::filesystem::path> images;
  std::filesystem::path clip;
  std::vector<std::string> caption;
  std::filesystem::path json;
  bool raw_weights = false;
  Precision precision = Precision::kAuto;
  std::string device = "auto";
  int threads = 0;

  static void visit_fields(auto& self, auto&& field) {
    field("images", self.images, "picture files");
    field("clip", self.clip, "checkpoint folder, run directory or .safetensors file");
    field("caption", self.caption, "captions to score the pictures against; may be repeated");
    field("json", self.json, "also write the scores to this file");
    field("raw_weights", self.raw_weights, "use the last weights instead of the averaged ones");
    field("precision", self.precision, "number format of matrix work");
    field("device", self.device, "auto, cpu, cuda or cuda:INDEX");
    field("threads", self.threads, "CPU threads; 0 = all", {.min = 0});
  }
  void validate(const std::string& place) const;
};

/// Prints, for each caption, the pictures by cosine, best first.
int run_score_images(const ScoreImagesOptions& options);

}  // namespace dalle::generation

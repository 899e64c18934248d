// score-images: any pictures against any captions, by CLIP.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "dalle/core/precision.h"

namespace dalle::generation {

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
    field("images", self.images, "picture files: PNG, JPEG or WebP");
    field("clip", self.clip, "checkpoint folder, run directory or .safetensors file");
    field("caption", self.caption, "a caption to score the pictures against; may be repeated");
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

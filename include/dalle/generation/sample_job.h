// sample-and-rerank: captions -> candidates of the prior -> pictures by the dVAE -> scores -> best K, as PNGs, contact
// sheets, scores.json and index.html (docs/scores_format.md).
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "dalle/core/precision.h"

namespace dalle::generation {

enum class RerankBy { kClip, kLikelihood, kNone };

/// core/precision.h, and int8: the prior's matrices with a scale for each output, the other models as with auto.
enum class SamplePrecision { kAuto, kF32, kBf16, kFp16, kInt8 };
Precision model_precision(SamplePrecision precision);

/// Rows of tokens that are kept of an image prompt unless the user says otherwise: of 32, as the paper has it (3.3).
inline constexpr int64_t kPromptRows = 15;

/// The command's flags: field batch_size is --batch-size.
struct SampleOptions {
  std::filesystem::path prior;
  std::filesystem::path dvae;
  std::filesystem::path clip;
  std::filesystem::path run;
  std::vector<std::string> caption;
  std::filesystem::path captions;
  int64_t candidates = 512;
  std::optional<int64_t> keep;  // 32, or all where fewer are drawn
  int64_t seed = 0;
  double temperature = 1;
  int64_t top_k = 0;
  double top_p = 1;
  double guidance = 1;
  std::filesystem::path image_prompt;
  std::optional<int64_t> prompt_rows;  // kPromptRows where not given
  RerankBy rerank = RerankBy::kClip;
  std::string batch_size = "auto";
  SamplePrecision precision = SamplePrecision::kAuto;
  std::string device = "auto";
  int threads = 0;
  bool raw_weights = false;
  bool save_tokens = false;
  std::filesystem::path out;

  static void visit_fields(auto& self, auto&& field);
  void validate(const std::string& place) const;
};

/// Runs the whole command and returns its exit code. Candidates are on disk as soon as their batch is finished; a run that was
/// killed or stopped by a signal (exit code 3) goes on when the same command is given again. Throws ConfigError for models
/// that do not fit together (both identities named) and for an `out` that holds anything but such a run.
int run_sample_job(const SampleOptions& options);

}  // namespace dalle::generation

namespace dalle {
template <>
struct EnumNames<generation::RerankBy> {
  static constexpr EnumName<generation::RerankBy> values[] = {{generation::RerankBy::kClip, "clip"},
                                                              {generation::RerankBy::kLikelihood, "likelihood"},
                                                              {generation::RerankBy::kNone, "none"}};
};
template <>
struct EnumNames<generation::SamplePrecision> {
  static constexpr EnumName<generation::SamplePrecision> values[] = {{generation::SamplePrecision::kAuto, "auto"},
                                                                     {generation::SamplePrecision::kF32, "f32"},
                                                                     {generation::SamplePrecision::kBf16, "bf16"},
                                                                     {generation::SamplePrecision::kFp16, "fp16"},
                                                                     {generation::SamplePrecision::kInt8, "int8"}};
};
}  // namespace dalle

void dalle::generation::SampleOptions::visit_fields(auto& self, auto&& field) {
  field("prior", self.prior, "the prior: checkpoint folder, run directory or .safetensors file");
  field("dvae", self.dvae, "the dVAE it was trained with");
  field("clip", self.clip, "CLIP, for --rerank clip");
  field("run", self.run, "a bundle: a folder with prior/, dvae/ and clip/, instead of the three flags");
  field("caption", self.caption, "captions to draw; may be repeated");
  field("captions", self.captions, "file with one caption a line");
  field("candidates", self.candidates, "pictures drawn for each caption", {.min = 1, .max = 1000000});
  field("keep", self.keep, "best candidates shown in the contact sheet; default 32, or all where fewer are drawn",
        {.min = 1});
  field("seed", self.seed, "seed of the noise", {.min = 0});
  field("temperature", self.temperature, "logits are divided by it", {.min = 1e-6});
  field("top_k", self.top_k, "draw among the k most probable codes; 0 = all", {.min = 0});
  field("top_p", self.top_p, "draw among the most probable codes that reach this mass", {.min = 1e-6, .max = 1});
  field("guidance", self.guidance, "classifier-free guidance; 1 = off", {.min = 0});
  field("image_prompt", self.image_prompt, "picture whose upper rows of tokens are kept");
  field("prompt_rows", self.prompt_rows, "rows of tokens kept of the image prompt; 15 unless said", {.min = 1});
  field("rerank", self.rerank, "what orders the candidates");
  field("batch_size", self.batch_size, "candidates drawn together: auto (by free memory) or a number");
  field("precision", self.precision,
        "number format of matrix work; int8: the prior's weights, each output with its scale");
  field("device", self.device, "auto, cpu, cuda or cuda:INDEX");
  field("threads", self.threads, "CPU threads; 0 = all", {.min = 0});
  field("raw_weights", self.raw_weights, "use the last weights instead of the averaged ones");
  field("save_tokens", self.save_tokens, "write tokens.json with each candidate's image tokens");
  field("out", self.out, "folder for the results: a new or empty one, or that of an interrupted run to go on with");
}

#include "sample_run.h"

#include <ATen/ATen.h>

#include "dalle/core/error.h"
#include "dalle/core/random.h"
#include "dalle/core/str.h"
#include "dalle/data/transforms.h"
#include "dalle/distributed/agreement.h"
#include "picture_files.h"

namespace dalle::generation {
namespace {

// A number that stands for the tokens.
std::string fingerprint(const Tensor& tokens) {
  const Tensor on_cpu = tokens.to(at::kCPU).contiguous();
  const auto* values = on_cpu.const_data_ptr<int64_t>();
  std::string text;
  for (int64_t i = 0; i < on_cpu.numel(); ++i) text += str(values[i], " ");
  return str(on_cpu.numel(), " tokens, number ", stable_hash(text));
}

Tensor read_prompt(const std::filesystem::path& path) {
  try {
    return read_picture(path);
  } catch (const DataError& error) {
    throw ConfigError(str("--image-prompt ", error.what()));
  }
}

}  // namespace

Tensor prompt_tokens(const SampleModels& models, const SampleOptions& options) {
  if (options.image_prompt.empty()) return {};
  const auto& config = models.dvae.model->config();
  const int64_t rows = options.prompt_rows.value_or(kPromptRows);
  if (rows >= config.grid_size()) {
    throw ConfigError(Problem{"--prompt-rows", str("fewer rows than the grid's ", config.grid_size()), str(rows),
                              "say with --prompt-rows how many of the picture's rows of tokens to keep"});
  }
  const data::TransformOptions transform{
      .image_size = config.image_size, .filter = data::ResizeFilter::kLanczos, .upscale_small = true};
  const Tensor bytes = data::transform_picture(read_prompt(options.image_prompt), transform, {});
  const Tensor pixels = bytes.to(models.device).to(at::kFloat).div_(255);
  return models.dvae.model->encode(pixels.unsqueeze(0)).flatten(1)[0].slice(0, 0, rows * config.grid_size());
}

RunDescription describe_run(const SampleOptions& options, const std::vector<std::string>& captions,
                            const SampleModels& models, const Tensor& prompt) {
  RunDescription run{{"--candidates", str(options.candidates)},
                     {"--seed", str(options.seed)},
                     {"--temperature", str(options.temperature)},
                     {"--top-k", str(options.top_k)},
                     {"--top-p", str(options.top_p)},
                     {"--guidance", str(options.guidance)},
                     {"--precision", std::string(enum_name(options.precision))},
                     {"--rerank", std::string(enum_name(options.rerank))},
                     {"--image-prompt", prompt.defined() ? fingerprint(prompt) : "none"},
                     {"number of captions", str(captions.size())}};
  for (size_t i = 0; i < captions.size(); ++i) run.emplace_back(str("caption ", i + 1), captions[i]);
  for (const auto& model : models.used) run.emplace_back(model.role, model.identity);
  return run;
}

void require_same_description(distributed::Communicator& ranks, const RunDescription& run) {
  if (ranks.world_size() == 1) return;
  const std::string hint = "start every rank with the same flags and files";
  std::vector<distributed::Fact> facts;
  std::string captions;
  for (const auto& [name, value] : run) {
    if (name.starts_with("caption ")) {
      captions += str(value.size(), ":", value);
    } else {
      facts.push_back({name, value, hint});
    }
  }
  facts.push_back({"captions", str("of hash ", stable_hash(captions)), hint});
  distributed::require_agreement(ranks, facts);
}

}  // namespace dalle::generation

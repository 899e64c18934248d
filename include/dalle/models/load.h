// Ready models from checkpoints: config and weights together, so that no caller repeats sizes a checkpoint knows.
#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "dalle/core/precision.h"
#include "dalle/models/clip.h"
#include "dalle/models/dvae.h"
#include "dalle/models/prior.h"
#include "dalle/storage/checkpoint.h"
#include "dalle/text/text_tokenizer.h"

namespace dalle::models {

/// A model in evaluation form (no gradients) with what its checkpoint says of it.
template <class Model>
struct Loaded {
  std::unique_ptr<Model> model;
  std::filesystem::path path;  // checkpoint folder or file
  std::string identity;        // of the weights in use
  int64_t step = 0;
  std::string tokenizer;                          // bytes; empty where the model reads no text
  std::map<std::string, std::string> identities;  // all that the checkpoint records
};

struct LoadOptions {
  at::Device device = at::kCPU;
  Precision precision = Precision::kF32;
  bool use_ema = true;
};

/// `given` is a checkpoint folder, a run directory (its latest) or one .safetensors file. Throws ConfigError where
/// nothing is there or it holds a model of another kind, CheckpointError where it is damaged.
Loaded<Dvae> load_dvae(const std::filesystem::path& given, const LoadOptions& options);
Loaded<Prior> load_prior(const std::filesystem::path& given, const LoadOptions& options);
Loaded<Clip> load_clip(const std::filesystem::path& given, const LoadOptions& options);

/// The tokenizer that a CLIP's checkpoint carries. Throws CheckpointError where it has none, or one of another kind or size
/// than the model's config says.
text::TextTokenizer clip_tokenizer(const Loaded<Clip>& clip);

/// What keeps `tensors` from being this module's parameters: one line for each that is missing, left over or of another
/// shape; empty where they fit.
std::vector<std::string> parameter_differences(const layers::Module& module,
                                               const std::vector<storage::NamedTensor>& tensors);

/// The first few lines of parameter_differences, for a message.
std::string summarize_differences(const std::vector<std::string>& differences);

/// Copies `tensors` into the module's parameters by name. Every name and shape must match, else CheckpointError. `place`
/// names the source in messages.
void load_parameters(layers::Module& module, const std::vector<storage::NamedTensor>& tensors,
                     const std::string& place);

/// The module's parameters under their names.
std::vector<storage::NamedTensor> named_tensors(const layers::Module& module);

/// Identity of a model: hash of its architecture config and tensors.
std::string identity_of(const std::string& model_config_yaml, const std::vector<storage::NamedTensor>& tensors);

}  // namespace dalle::models

#include "dalle/models/load.h"

#include <c10/core/GradMode.h>

#include <map>

#include "dalle/config/fields.h"
#include "dalle/core/error.h"
#include "dalle/core/str.h"
#include "dalle/storage/identity.h"
#include "dalle/storage/run_checkpoints.h"

namespace dalle::models {
namespace {

std::unique_ptr<Dvae> make(const DvaeConfig& config, at::ScalarType dtype) {
  return std::make_unique<Dvae>(config, DvaeCompute{dtype, at::kFloat});
}
std::unique_ptr<Prior> make(const PriorConfig& config, at::ScalarType dtype) {
  return std::make_unique<Prior>(config, PriorCompute{dtype, at::kFloat});
}
std::unique_ptr<Clip> make(const ClipConfig& config, at::ScalarType dtype) {
  return std::make_unique<Clip>(config, dtype);
}

template <class Model, class Config>
Loaded<Model> load(const std::filesystem::path& given, const std::string& kind, const LoadOptions& options) {
  const std::filesystem::path path = storage::resolve_checkpoint(given);
  const auto parts = options.use_ema ? storage::LoadParts::kEvaluation : storage::LoadParts::kModel;
  storage::Checkpoint checkpoint = storage::load_checkpoint(path, parts);
  if (checkpoint.kind != kind) {
    throw ConfigError(Problem{path.string(), "a checkpoint of a " + kind, "one of a " + checkpoint.kind,
                              "look at it with inspect-checkpoint"});
  }
  const auto node = config::parse_yaml(checkpoint.model_config_yaml, path.string() + " (model config)");
  const auto config = config::load_config<Config>(node);
  const auto& weights = options.use_ema ? checkpoint.evaluation_weights() : checkpoint.model;
  Loaded<Model> loaded;
  loaded.model = make(config, compute_dtype(options.precision, options.device));
  loaded.model->materialize(options.device);
  load_parameters(*loaded.model, weights, path.string());
  loaded.model->set_requires_grad(false);
  loaded.path = path;
  loaded.identity = identity_of(checkpoint.model_config_yaml, weights);
  loaded.step = checkpoint.step;
  loaded.tokenizer = std::move(checkpoint.tokenizer);
  loaded.identities = std::move(checkpoint.identities);
  return loaded;
}

}  // namespace

Loaded<Dvae> load_dvae(const std::filesystem::path& given, const LoadOptions& options) {
  return load<Dvae, DvaeConfig>(given, "dvae", options);
}

Loaded<Prior> load_prior(const std::filesystem::path& given, const LoadOptions& options) {
  return load<Prior, PriorConfig>(given, "prior", options);
}

Loaded<Clip> load_clip(const std::filesystem::path& given, const LoadOptions& options) {
  auto loaded = load<Clip, ClipConfig>(given, "clip", options);
  loaded.model->pack_for_inference();
  return loaded;
}

text::TextTokenizer clip_tokenizer(const Loaded<Clip>& clip) {
  if (clip.tokenizer.empty()) throw CheckpointError(clip.path.string() + ": CLIP's checkpoint has no tokenizer");
  auto tokenizer = text::TextTokenizer::from_bytes(clip.tokenizer);
  const auto& config = clip.model->config();
  if (tokenizer.kind() != config.tokenizer_kind || tokenizer.vocab_size() + 2 != config.text_vocab_size) {
    throw CheckpointError(
        Problem{clip.path.string() + " (tokenizer)",
                str(enum_name(config.tokenizer_kind), " with ", config.text_vocab_size - 2, " pieces"),
                str(enum_name(tokenizer.kind()), " with ", tokenizer.vocab_size()), ""});
  }
  return tokenizer;
}

std::vector<std::string> parameter_differences(const layers::Module& module,
                                               const std::vector<storage::NamedTensor>& tensors) {
  std::map<std::string, const Tensor*> given;
  for (const auto& entry : tensors) given[entry.name] = &entry.tensor;
  std::vector<std::string> differences;
  for (const auto& [name, parameter] : module.named_parameters()) {
    const auto found = given.find(name);
    if (found == given.end()) {
      differences.push_back(name + " is missing");
    } else if (found->second->sizes() != parameter->tensor.sizes()) {
      differences.push_back(
          dalle::str(name, " is ", found->second->sizes(), " where the model has ", parameter->tensor.sizes()));
    }
    given.erase(name);
  }
  for (const auto& [name, tensor] : given) differences.push_back(name + " is not part of the model");
  return differences;
}

std::string summarize_differences(const std::vector<std::string>& differences) {
  std::string text = str(differences.size(), " differences:");
  for (size_t i = 0; i < differences.size() && i < 3; ++i) text += "\n    " + differences[i];
  if (differences.size() > 3) text += str("\n    and ", differences.size() - 3, " more");
  return text;
}

void load_parameters(layers::Module& module, const std::vector<storage::NamedTensor>& tensors,
                     const std::string& place) {
  const auto differences = parameter_differences(module, tensors);
  if (!differences.empty()) {
    throw CheckpointError(Problem{place, "the tensors of this architecture", summarize_differences(differences), ""});
  }
  const c10::NoGradGuard no_grad;
  for (const auto& [name, parameter] : module.named_parameters()) {
    parameter->tensor.copy_(*storage::find_tensor(tensors, name));
  }
}

std::vector<storage::NamedTensor> named_tensors(const layers::Module& module) {
  std::vector<storage::NamedTensor> tensors;
  for (const auto& [name, parameter] : module.named_parameters()) tensors.push_back({name, parameter->tensor.detach()});
  return tensors;
}

std::string identity_of(const std::string& model_config_yaml, const std::vector<storage::NamedTensor>& tensors) {
  return storage::model_identity(model_config_yaml, tensors);
}

}  // namespace dalle::models

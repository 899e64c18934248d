#include "dalle/models/inspect.h"

#include <filesystem>
#include <iostream>
#include <optional>
#include <span>

#include "dalle/config/fields.h"
#include "dalle/core/error.h"
#include "dalle/core/str.h"
#include "dalle/models/clip.h"
#include "dalle/models/prior.h"
#include "dalle/storage/checkpoint.h"
#include "dalle/storage/run_checkpoints.h"
#include "dalle/text/pretokenize.h"
#include "dalle/text/text_tokenizer.h"
#include "dalle/text/tokenizer_report.h"

namespace dalle::models {
namespace {

void print_tensors(const char* title, const std::vector<storage::NamedTensor>& tensors, bool each) {
  if (tensors.empty()) return;
  int64_t total = 0;
  for (const auto& entry : tensors) total += entry.tensor.numel();
  std::cout << title << ": " << tensors.size() << " tensors, " << total << " numbers\n";
  if (!each) return;
  for (const auto& [name, tensor] : tensors)
    std::cout << "  " << name << " " << tensor.sizes() << " " << tensor.dtype() << "\n";
}

void print_tokenizer(const text::TextTokenizer& tokenizer) {
  std::cout << "tokenizer: " << tokenizer.vocab_size() << " pieces, identity " << tokenizer.identity() << ", "
            << enum_name(tokenizer.kind()) << "\n";
}

/// Caption tokens that the model has slots for, or nothing where it reads no text.
std::optional<int64_t> caption_slots(const storage::Checkpoint& checkpoint) {
  const auto node = config::parse_yaml(checkpoint.model_config_yaml, "model config");
  if (checkpoint.kind == "prior") return config::load_config<PriorConfig>(node).max_caption_tokens();
  if (checkpoint.kind == "clip") return config::load_config<ClipConfig>(node).max_caption_tokens();
  return std::nullopt;
}

void print_pieces(const text::TextTokenizer& tokenizer, const std::string& text, std::optional<int64_t> slots) {
  if (const auto offset = text::find_invalid_utf8(text)) {
    throw ConfigError(
        Problem{"--tokenize", "UTF-8 text",
                str("byte ", static_cast<int>(static_cast<unsigned char>(text[*offset])), " at offset ", *offset), ""});
  }
  const auto ids = tokenizer.encode(text);
  const auto count = static_cast<int64_t>(ids.size());
  const std::string normalised = tokenizer.normalize(text);
  std::cout << "normalised: " << normalised << "\n" << count << " tokens";
  if (slots) {
    std::cout << (count > *slots ? str(", cut to the ", *slots, " that the model has slots for")
                                 : str(" of the ", *slots, " that the model has slots for"));
  }
  std::cout << "\npieces: " << text::shown_pieces(tokenizer, ids) << "\nids:";
  for (const int64_t id : ids) std::cout << " " << id;
  std::cout << "\n";
  const std::string read_back = tokenizer.decode(ids);
  if (read_back != normalised) std::cout << "reads back as: " << read_back << "\n";
  if (slots && count > *slots) {
    const std::span<const int64_t> kept(ids.data(), static_cast<size_t>(*slots));
    std::cout << "the model sees: " << tokenizer.decode(kept) << "\n";
  }
}

/// The model file where `path` is a tokenizer or train-tokenizer's folder and no checkpoint.
std::optional<std::filesystem::path> tokenizer_alone(const std::filesystem::path& path) {
  if (path.extension() == ".model" && std::filesystem::is_regular_file(path)) return path;
  for (const char* of_checkpoint : {"MANIFEST.json", "model.safetensors"}) {
    if (std::filesystem::exists(path / of_checkpoint)) return std::nullopt;  // perhaps a damaged one
  }
  if (std::filesystem::is_regular_file(path / "tokenizer.model")) return path / "tokenizer.model";
  return std::nullopt;
}

int inspect_tokenizer(const std::filesystem::path& path, const InspectOptions& options) {
  if (options.tensors || options.verify) {
    throw ConfigError(
        Problem{options.tensors ? "--tensors" : "--verify", "a checkpoint", "a tokenizer: " + path.string(), ""});
  }
  const auto tokenizer = text::TextTokenizer::load(path);
  std::cout << path.string() << "\n";
  print_tokenizer(tokenizer);
  if (!options.tokenize.empty()) print_pieces(tokenizer, options.tokenize, std::nullopt);
  return 0;
}

}  // namespace

int run_inspect(const InspectOptions& options) {
  if (options.checkpoint.empty()) throw ConfigError("inspect-checkpoint: expected a checkpoint");
  if (const auto tokenizer = tokenizer_alone(options.checkpoint)) return inspect_tokenizer(*tokenizer, options);
  const auto path = storage::resolve_checkpoint(options.checkpoint);
  if (options.verify) storage::verify_checkpoint(path);
  const auto checkpoint = storage::load_checkpoint(path);
  if (!options.tokenize.empty() && checkpoint.tokenizer.empty()) {
    throw ConfigError(Problem{"--tokenize",
                              "the checkpoint of a model that reads text (prior, clip) or a tokenizer.model",
                              "a " + checkpoint.kind + ", which has no tokenizer", ""});
  }
  std::cout << path.string() << "\n"
            << "kind: " << checkpoint.kind << "\nstep: " << checkpoint.step
            << "\nsamples seen: " << checkpoint.samples_seen << "\n";
  if (options.verify) std::cout << "all files are whole and match their checksums\n";
  for (const auto& [name, identity] : checkpoint.identities)
    std::cout << "identity of " << name << ": " << identity << "\n";
  for (const auto& [name, value] : checkpoint.scalars) std::cout << name << ": " << value << "\n";
  print_tensors("model", checkpoint.model, options.tensors);
  print_tensors("averaged weights", checkpoint.ema, options.tensors);
  print_tensors("optimizer", checkpoint.optimizer, options.tensors);
  if (!checkpoint.tokenizer.empty()) print_tokenizer(text::TextTokenizer::from_bytes(checkpoint.tokenizer));
  std::cout << "model config:\n" << checkpoint.model_config_yaml;
  if (!options.tokenize.empty())
    print_pieces(text::TextTokenizer::from_bytes(checkpoint.tokenizer), options.tokenize, caption_slots(checkpoint));
  return 0;
}

}  // namespace dalle::models

#include "dalle/models/inspect.h"

#include <iostream>

#include "dalle/core/error.h"
#include "dalle/core/str.h"
#include "dalle/storage/checkpoint.h"
#include "dalle/storage/run_checkpoints.h"
#include "dalle/text/tokenizer.h"

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

void print_pieces(const std::string& model, const std::string& text) {
  if (model.empty()) throw ConfigError("--tokenize: this checkpoint has no tokenizer");
  const auto tokenizer = text::Tokenizer::from_bytes(model);
  const auto ids = tokenizer.encode(text);
  std::cout << ids.size() << " tokens:";
  for (const int64_t id : ids) std::cout << " " << tokenizer.piece(id) << "(" << id << ")";
  std::cout << "\n";
}

}  // namespace

int run_inspect(const InspectOptions& options) {
  if (options.checkpoint.empty()) throw ConfigError("inspect-checkpoint: expected a checkpoint");
  const auto path = storage::resolve_checkpoint(options.checkpoint);
  if (options.verify) storage::verify_checkpoint(path);
  const auto checkpoint = storage::load_checkpoint(path);
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
  if (!checkpoint.tokenizer.empty()) {
    const auto tokenizer = text::Tokenizer::from_bytes(checkpoint.tokenizer);
    std::cout << "tokenizer: " << tokenizer.vocab_size() << " pieces, identity " << tokenizer.identity() << "\n";
  }
  std::cout << "model config:\n" << checkpoint.model_config_yaml;
  if (!options.tokenize.empty()) print_pieces(checkpoint.tokenizer, options.tokenize);
  return 0;
}

}  // namespace dalle::models

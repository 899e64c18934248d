#include "dalle/training/tokenizer_run.h"

#include <algorithm>
#include <iostream>

#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/core/logging.h"
#include "dalle/core/str.h"
#include "dalle/data/dataset.h"
#include "dalle/text/tokenizer.h"
#include "dalle/training/run_directory.h"
#include "dalle/training/task_support.h"

namespace dalle::training {
namespace {

// How well the pieces fit the captions: tokens a word, longest caption, some examples.
void report(const text::Tokenizer& tokenizer, const std::vector<std::string>& captions) {
  int64_t tokens = 0, words = 0, longest = 0;
  for (const auto& caption : captions) {
    const auto count = static_cast<int64_t>(tokenizer.encode(caption).size());
    tokens += count;
    longest = std::max(longest, count);
    words += 1 + std::count(caption.begin(), caption.end(), ' ');
  }
  log_info(str(captions.size(), " captions, ", tokens, " tokens; ",
               short_number(static_cast<double>(tokens) / static_cast<double>(words)),
               " tokens a word, longest caption ", longest, " tokens"));
  for (size_t i = 0; i < std::min<size_t>(3, captions.size()); ++i) {
    std::string pieces;
    for (const int64_t id : tokenizer.encode(captions[i])) pieces += (pieces.empty() ? "" : "|") + tokenizer.piece(id);
    log_info(str("  ", captions[i], "  ->  ", pieces));
  }
}

}  // namespace

void check_tokenizer_training(const TokenizerTraining& config, const cli::Invocation& call) {
  std::cout << call.command << " " << call.config_name << ": the config is valid; vocabulary of "
            << config.tokenizer.vocab_size << " pieces\n";
}

int run_tokenizer_training(const TokenizerTraining& config, const cli::Invocation& call) {
  if (call.resume) throw ConfigError("train-tokenizer has nothing to resume: it takes seconds; start it anew");
  const data::Dataset dataset(config.data.sources);
  const auto captions = dataset.all_captions();
  const std::string model = text::train_tokenizer(captions, config.tokenizer);
  const auto tokenizer = text::Tokenizer::from_bytes(model);
  const auto root = call.run_dir.empty() ? RunDirectory::default_path(call.config_name) : call.run_dir;
  RunDirectory run = RunDirectory::create(root, call.resolved_config, RunFolders::kNone);
  set_log_file(run.log_file());
  write_file(run.root() / "tokenizer.model", model);
  report(tokenizer, captions);
  log_info(str(call.command, ": ", tokenizer.vocab_size(), " pieces in ", (run.root() / "tokenizer.model").string()));
  return cli::kDone;
}

}  // namespace dalle::training

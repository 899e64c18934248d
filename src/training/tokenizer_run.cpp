#include "dalle/training/tokenizer_run.h"

#include <iostream>
#include <sstream>

#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/core/logging.h"
#include "dalle/core/number_text.h"
#include "dalle/core/str.h"
#include "dalle/data/dataset.h"
#include "dalle/text/tokenizer.h"
#include "dalle/text/tokenizer_report.h"
#include "dalle/training/run_directory.h"
#include "dalle/training/task_support.h"

namespace dalle::training {
namespace {

void warn_of_limits(const text::TokenizerReport& report, const text::TokenizerConfig& config) {
  if (report.num_pieces < config.vocab_size) {
    log_warning(str("the captions support ", grouped_digits(report.num_pieces), " pieces, fewer than vocab_size ",
                    grouped_digits(config.vocab_size), "; hard_vocab_limit is off, so the tokenizer is smaller"));
  }
  if (config.max_words > 0 && report.num_distinct_words > config.max_words) {
    log_warning(str("merges were learned from the ", grouped_digits(config.max_words), " most frequent of ",
                    grouped_digits(report.num_distinct_words), " different words (tokenizer.max_words)"));
  }
  if (report.num_unknown > 0) {
    log_warning(str(grouped_digits(report.num_unknown), " characters become <unk> and cannot be read back; switch on ",
                    "tokenizer.byte_fallback"));
  }
}

void log_lines(const std::string& text) {
  std::istringstream lines(text);
  for (std::string line; std::getline(lines, line);) log_info(line);
}

}  // namespace

void check_tokenizer_training(const TokenizerTraining& config, const cli::Invocation& call) {
  std::cout << call.command << " " << call.config_name << ": the config is valid; vocabulary of "
            << grouped_digits(config.tokenizer.vocab_size) << " pieces\n";
}

int run_tokenizer_training(const TokenizerTraining& config, const cli::Invocation& call) {
  if (call.resume) throw ConfigError("train-tokenizer has nothing to resume: it takes seconds; start it anew");
  const data::Dataset dataset(config.data.sources);
  const auto captions = dataset.all_captions();
  log_info(str(call.command, ": learning up to ", grouped_digits(config.tokenizer.vocab_size), " pieces from ",
               grouped_digits(static_cast<int64_t>(captions.size())), " captions"));
  const std::string model = text::train_tokenizer(captions, config.tokenizer);
  const auto tokenizer = text::Tokenizer::from_bytes(model);
  const auto root = call.run_dir.empty() ? RunDirectory::default_path(call.config_name) : call.run_dir;
  RunDirectory run = RunDirectory::create(root, call.resolved_config, RunFolders::kNone);
  set_log_file(run.log_file());
  write_file(run.root() / "tokenizer.model", model);
  const auto report = text::survey_tokenizer(tokenizer, captions);
  warn_of_limits(report, config.tokenizer);
  const std::string description = text::describe(report, config.tokenizer.vocab_size);
  write_file(run.root() / "report.txt", description);
  log_lines(description);
  log_info(str(call.command, ": ", grouped_digits(tokenizer.vocab_size()), " pieces in ",
               (run.root() / "tokenizer.model").string(), ", this report in ", (run.root() / "report.txt").string()));
  return cli::kDone;
}

}  // namespace dalle::training

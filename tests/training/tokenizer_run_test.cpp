#include "dalle/training/tokenizer_run.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sstream>

#include "dalle/text/tokenizer_report.h"
#include "training/tiny_runs.h"

namespace dalle::training {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

TokenizerTraining small_config() {
  TokenizerTraining config;
  config.data.sources = {emoji("train.tar", 64)};
  config.tokenizer = {.vocab_size = 340};
  return config;
}

cli::Invocation call_for(const fs::path& root) {
  set_console_level(LogLevel::kError);
  return {.command = "train-tokenizer", .config_name = "tiny", .run_dir = root, .resolved_config = "a: 1\n"};
}

TEST(TokenizerRun, WritesATokenizerAndAReport) {
  const testing::TempDirectory scratch("tokenizer-run");
  EXPECT_EQ(run_tokenizer_training(small_config(), call_for(scratch / "run")), cli::kDone);
  set_log_file("");
  const auto tokenizer = text::Tokenizer::load(scratch / "run/tokenizer.model");
  EXPECT_EQ(tokenizer.vocab_size(), 340);
  const auto captions = data::Dataset(small_config().data.sources).all_captions();
  EXPECT_EQ(read_file(scratch / "run/tokenizer.model"), text::train_tokenizer(captions, small_config().tokenizer));
  for (const auto& caption : captions) EXPECT_FALSE(tokenizer.encode(caption).empty()) << caption;
  EXPECT_EQ(read_file(scratch / "run/config.yaml"), "a: 1\n");
  const std::string report = read_file(scratch / "run/report.txt");
  EXPECT_EQ(report, text::describe(text::survey_tokenizer(tokenizer, captions), 340));
  const std::string log = read_file(scratch / "run/log.txt");
  std::istringstream lines(report);
  for (std::string line; std::getline(lines, line);) EXPECT_THAT(log, HasSubstr(line));
  EXPECT_THAT(log, Not(HasSubstr("hard_vocab_limit")));
}

TEST(TokenizerRun, TheLogSaysWhereTheCaptionsSetTheLimits) {
  const testing::TempDirectory scratch("tokenizer-limits");
  auto config = small_config();
  config.tokenizer = {.vocab_size = 16384, .character_coverage = 0.9, .byte_fallback = false, .max_words = 5};
  run_tokenizer_training(config, call_for(scratch / "run"));
  set_log_file("");
  const auto size = text::Tokenizer::load(scratch / "run/tokenizer.model").vocab_size();
  const std::string log = read_file(scratch / "run/log.txt");
  EXPECT_THAT(log, HasSubstr(str("warning the captions support ", size, " pieces, fewer than vocab_size 16,384")));
  EXPECT_THAT(log, HasSubstr("hard_vocab_limit is off"));
  EXPECT_THAT(log, HasSubstr("merges were learned from the 5 most frequent of"));
  EXPECT_THAT(log, HasSubstr("become <unk> and cannot be read back"));
  EXPECT_THAT(read_file(scratch / "run/report.txt"), HasSubstr("hard_vocab_limit is off"));
}

TEST(TokenizerRun, RefusesWithoutLeavingAnything) {
  const testing::TempDirectory scratch("tokenizer-refused");
  auto config = small_config();
  config.tokenizer.vocab_size = 20;
  EXPECT_THAT(message_of<ConfigError>([&] { run_tokenizer_training(config, call_for(scratch / "run")); }),
              HasSubstr("vocab_size"));
  config.data.sources[0].path = scratch / "nowhere.tar";
  EXPECT_THROW(run_tokenizer_training(config, call_for(scratch / "run")), ConfigError);
  auto call = call_for(scratch / "run");
  call.resume = true;
  EXPECT_THAT(message_of<ConfigError>([&] { run_tokenizer_training(small_config(), call); }),
              HasSubstr("nothing to resume"));
  EXPECT_FALSE(fs::exists(scratch / "run"));
  write_file(scratch / "used.txt", "x");
  EXPECT_THROW(run_tokenizer_training(small_config(), call_for(scratch.path())), ConfigError);
  EXPECT_FALSE(fs::exists(scratch / "tokenizer.model"));
}

TEST(TokenizerRun, CheckSaysWhatWouldBeMade) {
  ::testing::internal::CaptureStdout();
  check_tokenizer_training(small_config(), call_for(""));
  EXPECT_THAT(::testing::internal::GetCapturedStdout(), HasSubstr("340 pieces"));
}

}  // namespace
}  // namespace dalle::training

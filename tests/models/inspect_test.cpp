// What inspect-checkpoint prints.
#include "dalle/models/inspect.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/core/str.h"
#include "dalle/models/load.h"
#include "dalle/text/tokenizer.h"
#include "dalle/text/tokenizer_trainer.h"
#include "support/temp_directory.h"

namespace dalle::models {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

storage::Checkpoint small_checkpoint() {
  Dvae dvae{{.image_size = 16, .vocab_size = 12, .hidden_dim = 8, .num_groups = 2, .decoder_init_dim = 4}};
  dvae.materialize(at::kCPU);
  dvae.initialize(0);
  return {.kind = "dvae",
          .config_yaml = "name: x\n",
          .model_config_yaml = "image_size: 16\n",
          .step = 42,
          .model = named_tensors(dvae),
          .identities = {{"model", "0123abc"}}};
}

std::string printed(const InspectOptions& options) {
  ::testing::internal::CaptureStdout();
  run_inspect(options);
  return ::testing::internal::GetCapturedStdout();
}

TEST(Inspect, ShowsKindStepIdentitiesAndConfig) {
  testing::TempDirectory scratch("inspect");
  storage::save_checkpoint(scratch / "c", small_checkpoint());
  const std::string text = printed({.checkpoint = scratch / "c"});
  EXPECT_THAT(text, HasSubstr("kind: dvae"));
  EXPECT_THAT(text, HasSubstr("step: 42"));
  EXPECT_THAT(text, HasSubstr("0123abc"));
  EXPECT_THAT(text, HasSubstr("image_size: 16"));
  EXPECT_THAT(text, Not(HasSubstr("encoder.blocks.input.w")));
  EXPECT_THAT(printed({.checkpoint = scratch / "c", .tensors = true}),
              HasSubstr("encoder.blocks.input.w [8, 3, 7, 7]"));
}

TEST(Inspect, VerifyFindsADamagedFile) {
  testing::TempDirectory scratch("inspect-verify");
  storage::save_checkpoint(scratch / "c", small_checkpoint());
  EXPECT_THAT(printed({.checkpoint = scratch / "c", .verify = true}), HasSubstr("match their checksums"));
  std::fstream file(scratch / "c" / "model.safetensors", std::ios::in | std::ios::out | std::ios::binary);
  file.seekp(-3, std::ios::end);
  file.put('!');
  file.close();
  EXPECT_THROW(run_inspect({.checkpoint = scratch / "c", .verify = true}), CheckpointError);
}

TEST(Inspect, AnEmptyPathAndAModelWithoutTokenizerAreConfigErrors) {
  testing::TempDirectory scratch("inspect-errors");
  storage::save_checkpoint(scratch / "c", small_checkpoint());
  EXPECT_THROW(run_inspect({}), ConfigError);
  ::testing::internal::CaptureStdout();
  EXPECT_THROW(run_inspect({.checkpoint = scratch / "c", .tokenize = "a cat"}), ConfigError);
  ::testing::internal::GetCapturedStdout();
}

storage::Checkpoint prior_with_tokenizer(int64_t text_context, const text::Tokenizer& tokenizer) {
  return {.kind = "prior",
          .model_config_yaml = str("text_context: ", text_context, "\n"),
          .model = {{"w", at::zeros({1})}},
          .tokenizer = tokenizer.model_bytes()};
}

TEST(Inspect, TokenizeShowsPiecesIdsAndWhatIsCut) {
  testing::TempDirectory scratch("inspect-tokenize");
  const auto tokenizer =
      text::Tokenizer::from_bytes(text::train_tokenizer({"the cat", "the cat"}, {.vocab_size = 270}));
  storage::save_checkpoint(scratch / "wide", prior_with_tokenizer(16, tokenizer));
  storage::save_checkpoint(scratch / "narrow", prior_with_tokenizer(4, tokenizer));
  const auto ids = tokenizer.encode("the cat é");
  ASSERT_EQ(ids.size(), 6U);
  const std::string fits = printed({.checkpoint = scratch / "wide", .tokenize = " The CAT  é"});
  EXPECT_THAT(fits, HasSubstr("normalised: the cat é\n6 tokens of the 15 that the model has slots for\n"));
  EXPECT_THAT(fits, HasSubstr("pieces: the|_|cat|_|<0xC3>|<0xA9>\nids: " + str(ids[0], " ", ids[1], " ", ids[2])));
  EXPECT_THAT(fits, Not(HasSubstr("reads back")));
  const std::string cut = printed({.checkpoint = scratch / "narrow", .tokenize = "the cat é"});
  EXPECT_THAT(cut, HasSubstr("6 tokens, cut to the 3 that the model has slots for"));
  EXPECT_THAT(cut, HasSubstr("the model sees: the cat\n"));
}

TEST(Inspect, ATokenizerAloneCanBeLookedAtAsWell) {
  testing::TempDirectory scratch("inspect-tokenizer");
  const auto tokenizer = text::Tokenizer::from_bytes(
      text::train_tokenizer({"the cat", "the cat"}, {.vocab_size = 30, .byte_fallback = false}));
  write_file(scratch / "tokenizer.model", tokenizer.model_bytes());
  for (const auto& path : {scratch.path(), scratch / "tokenizer.model"}) {
    const std::string text = printed({.checkpoint = path, .tokenize = "the é"});
    EXPECT_THAT(text,
                HasSubstr(str("tokenizer: ", tokenizer.vocab_size(), " pieces, identity ", tokenizer.identity())));
    EXPECT_THAT(text, HasSubstr("3 tokens\npieces: the|_|<unk>\n"));
    EXPECT_THAT(text, HasSubstr("reads back as: the \u2047\n"));
  }
  ::testing::internal::CaptureStdout();
  EXPECT_THROW(run_inspect({.checkpoint = scratch.path(), .tokenize = "\xFF"}), ConfigError);
  std::filesystem::create_directory(scratch / "unfinished");
  write_file(scratch / "unfinished/model.safetensors", "");
  write_file(scratch / "unfinished/tokenizer.model", tokenizer.model_bytes());
  EXPECT_THROW(run_inspect({.checkpoint = scratch / "unfinished"}), Error) << "a damaged checkpoint is no tokenizer";
  EXPECT_THROW(run_inspect({.checkpoint = scratch.path(), .tensors = true}), ConfigError);
  EXPECT_THROW(run_inspect({.checkpoint = scratch.path(), .verify = true}), ConfigError);
  ::testing::internal::GetCapturedStdout();
}

}  // namespace
}  // namespace dalle::models

// What inspect-checkpoint prints.
#include "dalle/models/inspect.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>

#include "dalle/core/error.h"
#include "dalle/models/load.h"
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

}  // namespace
}  // namespace dalle::models

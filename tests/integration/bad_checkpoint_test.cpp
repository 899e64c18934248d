// Checkpoints that do not fit, or are not whole.
#include "integration/tiny_pipeline.h"

namespace dalle::integration {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

void flip_a_byte(const fs::path& file) {
  std::string bytes = read_file(file);
  bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
  write_file(file, bytes);
}

std::string identity(const fs::path& run, const std::string& of) {
  return storage::load_checkpoint(storage::resolve_checkpoint(run)).identities.at(of);
}

/// Samples from the system with some flags replaced; whatever goes wrong, no folder is left.
Outcome sample_badly(const std::vector<std::pair<std::string, std::string>>& replaced) {
  const auto& system = TinySystem::instance();
  auto arguments = sample_arguments(system, "bad-samples", {"--caption", "red apple", "--candidates", "2"});
  for (const auto& [flag, value] : replaced) {
    const auto at = std::find(arguments.begin(), arguments.end(), flag);
    *(at + 1) = value;
  }
  const Outcome outcome = run("sample-and-rerank", arguments);
  EXPECT_FALSE(fs::exists(system / "bad-samples"));
  return outcome;
}

TEST(BadCheckpoint, AnotherKindOfModelIsRefused) {
  const auto& system = TinySystem::instance();
  const auto swapped = sample_badly({{"--prior", system.at("dvae")}});
  EXPECT_EQ(swapped.exit_code, 2);
  EXPECT_THAT(swapped.err, HasSubstr("expected a checkpoint of a prior, got one of a dvae"));
  EXPECT_EQ(sample_badly({{"--dvae", system.at("clip")}}).exit_code, 2);
  EXPECT_EQ(sample_badly({{"--clip", system.at("prior")}}).exit_code, 2);
  EXPECT_EQ(sample_badly({{"--clip", system.at("tokenizer")}}).exit_code, 2);
}

TEST(BadCheckpoint, AnotherDvaeIsRefusedWithBothIdentities) {
  const auto& system = TinySystem::instance();
  const Workplace place("other-dvae");
  place.train_well("dvae", dvae_yaml(3), "dvae");
  const auto outcome = sample_badly({{"--dvae", place.at("dvae")}});
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_THAT(outcome.err,
              AllOf(HasSubstr(identity(system / "prior", "dvae")), HasSubstr(identity(place / "dvae", "ema"))));

  // The same for a prior that is resumed after the dVAE in its place has changed.
  fs::copy(system / "tokenizer", place / "tokenizer");
  place.train_well("prior", prior_yaml(1), "prior");
  const std::string before = identity(place / "prior", "dvae");
  fs::remove_all(place / "dvae");
  place.train_well("dvae", dvae_yaml(4), "dvae");
  const auto files = listing(place / "prior/checkpoints");
  const auto resumed = place.resume("prior", "prior", {"--set", "trainer.num_steps=3"});
  EXPECT_EQ(resumed.exit_code, 2);
  EXPECT_THAT(resumed.err, AllOf(HasSubstr(before), HasSubstr(identity(place / "dvae", "ema"))));
  EXPECT_EQ(listing(place / "prior/checkpoints"), files);
}

TEST(BadCheckpoint, AnotherTokenizerIsRefusedOnResume) {
  const auto& system = TinySystem::instance();
  const Workplace place("other-tokenizer");
  for (const char* part : {"tokenizer", "dvae"})
    fs::copy(system / part, place / part, fs::copy_options::recursive | fs::copy_options::copy_symlinks);
  place.train_well("prior", prior_yaml(1), "prior");
  const std::string before = identity(place / "prior", "tokenizer");
  fs::remove_all(place / "tokenizer");
  place.train_well("tokenizer", tokenizer_yaml(330), "tokenizer");
  const auto resumed = place.resume("prior", "prior", {"--set", "trainer.num_steps=3"});
  EXPECT_EQ(resumed.exit_code, 2);
  EXPECT_THAT(resumed.err, AllOf(HasSubstr("tokenizer"), HasSubstr(before)));
}

TEST(BadCheckpoint, AStartFromOtherWeightsIsRefused) {
  const auto& system = TinySystem::instance();
  const Workplace place("init-from");
  const auto other =
      place.train("dvae", dvae_yaml(2), "run",
                  {"--set", str("trainer.init_from=", system.at("dvae")), "--set", "model.hidden_dim=12"});
  EXPECT_EQ(other.exit_code, 2);
  EXPECT_THAT(other.err,
              AllOf(HasSubstr("trainer.init_from"), HasSubstr("differences:"), HasSubstr("where the model has")));
  const auto kind = place.train("dvae", dvae_yaml(2), "run", {"--set", str("trainer.init_from=", system.at("prior"))});
  EXPECT_EQ(kind.exit_code, 2);
  EXPECT_THAT(kind.err, HasSubstr("expected a checkpoint of a dvae, got one of a prior"));
  EXPECT_FALSE(fs::exists(place / "run"));
  const auto good = place.train("dvae", dvae_yaml(2), "run", {"--set", str("trainer.init_from=", system.at("dvae"))});
  EXPECT_EQ(good.exit_code, 0) << good.err;
}

TEST(BadCheckpoint, DamageIsFoundBeforeAnythingIsDrawn) {
  const auto& system = TinySystem::instance();
  const Workplace place("damaged");
  const auto copy = [&](const std::string& name) {
    fs::remove_all(place / name);
    fs::copy(fs::canonical(system / "prior/checkpoints/latest"), place / name, fs::copy_options::recursive);
    return place / name;
  };
  flip_a_byte(copy("flipped") / "ema.safetensors");
  const auto flipped = sample_badly({{"--prior", place.at("flipped")}});
  EXPECT_EQ(flipped.exit_code, 1);
  EXPECT_THAT(flipped.err, HasSubstr("ema.safetensors"));

  const fs::path cut = copy("cut") / "ema.safetensors";
  fs::resize_file(cut, fs::file_size(cut) / 2);
  const auto cut_short = sample_badly({{"--prior", place.at("cut")}});
  EXPECT_EQ(cut_short.exit_code, 1);
  EXPECT_THAT(cut_short.err, HasSubstr("ema.safetensors"));

  fs::remove(copy("part") / "tokenizer.model");
  const auto part = sample_badly({{"--prior", place.at("part")}});
  EXPECT_EQ(part.exit_code, 1);
  EXPECT_THAT(part.err, HasSubstr("tokenizer.model"));

  write_file(copy("garbled") / "MANIFEST.json", "{");
  EXPECT_EQ(sample_badly({{"--prior", place.at("garbled")}}).exit_code, 1);
  fs::remove(copy("unfinished") / "MANIFEST.json");
  EXPECT_EQ(sample_badly({{"--prior", place.at("unfinished")}}).exit_code, 2) << "not a checkpoint at all";

  flip_a_byte(copy("optimizer") / "optimizer.safetensors");
  EXPECT_EQ(run("inspect-checkpoint", {place.at("optimizer"), "--verify"}).exit_code, 1);
}

TEST(BadCheckpoint, AResumeFallsBackToTheLastWholeOne) {
  const Workplace place("fall-back");
  const std::string extra = "  keep_checkpoints: 0\n";
  place.train_well("dvae", dvae_yaml(4, emoji("train.tar"), extra), "run");
  ASSERT_EQ(place.resume("dvae", "run", {"--set", "trainer.num_steps=6"}).exit_code, 0);
  place.train_well("dvae", dvae_yaml(6), "straight");
  flip_a_byte(place / "run/checkpoints/step-00000006/model.safetensors");
  const auto resumed = place.resume("dvae", "run", {"--set", "trainer.num_steps=6"});
  EXPECT_EQ(resumed.exit_code, 0) << resumed.err;
  EXPECT_THAT(resumed.err, AllOf(HasSubstr("passing over a damaged checkpoint"), HasSubstr("resuming at step 4")));
  expect_same_weights(place / "run/checkpoints/step-00000006", place / "straight/checkpoints/latest");
  for (const char* step : {"step-00000004", "step-00000006"})
    flip_a_byte(place / "run/checkpoints" / step / "state.json");
  EXPECT_EQ(place.resume("dvae", "run").exit_code, 1);
}

}  // namespace
}  // namespace dalle::integration

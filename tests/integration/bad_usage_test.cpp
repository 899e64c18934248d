// Wrong flags and configs: exit code 2, a message that leads to the mistake, and nothing written.
#include "dalle/config/node.h"
#include "integration/tiny_pipeline.h"

namespace dalle::integration {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

void expect_usage_error(const Outcome& outcome, const std::string& said) {
  EXPECT_EQ(outcome.exit_code, 2) << outcome.err;
  EXPECT_THAT(outcome.err + outcome.out, HasSubstr(said));
}

/// A config of ten good lines and a bad one.
Outcome train_with(const Workplace& place, const std::string& section, const std::string& line) {
  std::string yaml = dvae_yaml(2);
  const size_t at = yaml.find(section + ":\n");
  yaml.insert(at + section.size() + 2, "  " + line + "\n");
  return place.train("dvae", yaml, "run");
}

TEST(BadUsage, MistakesInAConfigAreNamedWithTheirLine) {
  const Workplace place("bad-config");
  const auto check = [&](const std::string& section, const std::string& line, const std::string& said) {
    expect_usage_error(train_with(place, section, line), said);
    EXPECT_FALSE(fs::exists(place / "run"));
  };
  check("trainer", "num_stepz: 7", "run.yaml:2: unknown key 'trainer.num_stepz'\n  hint: did you mean 'num_steps'?");
  check("model", "hiden_dim: 7", "did you mean 'hidden_dim'?");
  check("trainer", "clip_norm: many", "run.yaml:2 (trainer.clip_norm): expected a number, got 'many'");
  check("trainer", "keep_checkpoints: 2.5", "expected an integer, got '2.5'");
  check("trainer", "overfit_one_batch: maybe", "expected true or false, got 'maybe'");
  check("trainer", "profile_num_steps: 0", "run.yaml:2 (trainer.profile_num_steps): expected a number >= 1, got '0'");
  check("trainer", "micro_batch_size: 3", "divisible by micro_batch_size 3");
  check("data", "resize_filter: sharpen", "(data.resize_filter): expected one of: ");
  check("relaxation", "kl_normalization: none", "expected one of: per_position, paper, got 'none'");
  check("trainer", "freeze: [decodr]", "'decodr'");
  check("trainer", "num_steps: 3", "num_steps");  // written twice
}

TEST(BadUsage, ConfigsThatCannotBeRead) {
  const Workplace place("no-config");
  expect_usage_error(run("train-dvae", {place.at("lost.yaml")}), "lost.yaml");
  expect_usage_error(run("train-dvae", {}), "CONFIG.yaml");
  expect_usage_error(run("train-dvae", {place.file("broken.yaml", "trainer: [1, 2\n")}), "broken.yaml");
  expect_usage_error(run("train-dvae", {place.file("list.yaml", "- 1\n")}), "list.yaml");
}

TEST(BadUsage, FlagsThatMeanNothing) {
  const Workplace place("bad-flags");
  expect_usage_error(place.train("dvae", dvae_yaml(2), "run", {"--steps", "3"}), "--steps");
  expect_usage_error(place.train("dvae", dvae_yaml(2), "run", {"--set", "trainer.num_step=3"}),
                     "did you mean 'num_steps'?");
  expect_usage_error(place.train("dvae", dvae_yaml(2), "run", {"--set", "trainer.num_steps=few"}),
                     "expected an integer, got 'few'");
  expect_usage_error(place.train("dvae", dvae_yaml(2), "run", {"--set", "novalue"}), "novalue");
  expect_usage_error(place.train("dvae", dvae_yaml(2), "run", {"--device", "tpu"}), "tpu");
  expect_usage_error(place.train("dvae", dvae_yaml(2), "run", {"--threads", "-1"}), "--threads");
  expect_usage_error(place.resume("dvae", "nowhere"), "nowhere");
  expect_usage_error(run("train-dvae", {"--resume"}), "--run-dir");
  EXPECT_FALSE(fs::exists(place / "run"));
  EXPECT_FALSE(fs::exists(place / "nowhere"));
}

TEST(BadUsage, AnExistingRunIsNeverOverwritten) {
  const Workplace place("existing-run");
  place.train_well("dvae", dvae_yaml(1), "run");
  const auto before = listing(place / "run");
  expect_usage_error(place.train("dvae", dvae_yaml(1), "run"), "--resume");
  EXPECT_EQ(listing(place / "run"), before);
}

TEST(BadUsage, AResumedRunKeepsItsConfig) {
  const Workplace place("resume-config");
  place.train_well("dvae", dvae_yaml(2), "run");
  const auto before = listing(place / "run/checkpoints");
  const auto refused = place.resume("dvae", "run", {"--set", "model.vocab_size=32"});
  expect_usage_error(refused, "model.vocab_size");
  EXPECT_THAT(refused.err, AllOf(HasSubstr("'16'"), HasSubstr("'32'"), HasSubstr("start a new run")));
  EXPECT_EQ(listing(place / "run/checkpoints"), before);
  const auto longer = place.resume("dvae", "run", {"--set", "trainer.num_steps=4"});
  EXPECT_EQ(longer.exit_code, 0) << longer.err;
  EXPECT_THAT(longer.err, HasSubstr("trainer.num_steps changes from 2 to 4"));
  EXPECT_EQ(train_lines(place / "run").size(), 4U);
}

TEST(BadUsage, CheckAndPrintConfigWriteNothing) {
  const Workplace place("check");
  fs::create_directory(place / "empty");
  const std::string yaml = place.file("dvae.yaml", dvae_yaml(2));
  const auto check = run("train-dvae", {yaml, "--check"}, {.directory = place / "empty"});
  EXPECT_EQ(check.exit_code, 0) << check.err;
  EXPECT_THAT(check.out, AllOf(HasSubstr("the config is valid"), HasSubstr("parameters: ")));
  const auto print =
      run("train-dvae", {yaml, "--set", "trainer.seed=77", "--print-config"}, {.directory = place / "empty"});
  EXPECT_EQ(print.exit_code, 0) << print.err;
  EXPECT_THAT(print.out, HasSubstr("seed: 77"));
  EXPECT_TRUE(fs::is_empty(place / "empty"));
  const auto again = run("train-dvae", {place.file("printed.yaml", print.out), "--print-config"});
  EXPECT_EQ(again.out, print.out);
  const auto paper = run("train-prior", {str(DALLE_SOURCE_DIR, "/configs/paper/prior.yaml"), "--check"},
                         {.directory = place / "empty"});
  EXPECT_EQ(paper.exit_code, 0) << paper.err;
  EXPECT_THAT(paper.out, HasSubstr("12,292,840,960"));
  EXPECT_TRUE(fs::is_empty(place / "empty"));
}

TEST(BadUsage, HelpNamesEveryKey) {
  for (const std::string command : {"train-tokenizer", "train-dvae", "train-clip", "train-prior", "encode-images"}) {
    const auto help = run(command, {"--help"});
    EXPECT_EQ(help.exit_code, 0);
    EXPECT_THAT(help.out, AllOf(HasSubstr("--resume"), HasSubstr("data.sources[].path: path"))) << command;
  }
  EXPECT_THAT(run("train-dvae", {"--help"}).out, HasSubstr("trainer.num_steps: int, in steps [1000] *"));
  for (const std::string command : {"sample-and-rerank", "reconstruct", "score-images", "inspect-checkpoint"}) {
    EXPECT_EQ(run(command, {"--help"}).exit_code, 0) << command;
    EXPECT_EQ(run(command, {"--no-such-flag"}).exit_code, 2) << command;
    EXPECT_EQ(run(command, {}).exit_code, 2) << command;
  }
}

TEST(BadUsage, SamplersSayWhatTheyLack) {
  const Workplace place("bad-sampling");
  const std::string out = place.at("out");
  expect_usage_error(run("sample-and-rerank", {"--caption", "x", "--out", out}), "--prior");
  expect_usage_error(run("sample-and-rerank", {"--prior", "p", "--dvae", "d", "--out", out}), "--caption");
  expect_usage_error(
      run("sample-and-rerank", {"--prior", place.at("p"), "--dvae", place.at("d"), "--caption", "x", "--out", out}),
      "no such file or folder");
  expect_usage_error(
      run("sample-and-rerank", {"--prior", "p", "--dvae", "d", "--caption", "x", "--candidates", "0", "--out", out}),
      "--candidates");
  expect_usage_error(
      run("sample-and-rerank", {"--prior", "p", "--dvae", "d", "--caption", "x", "--rerank", "luck", "--out", out}),
      "clip, likelihood, none");
  EXPECT_FALSE(fs::exists(out));
  place.file("used.txt", "x");
  expect_usage_error(
      run("sample-and-rerank", {"--prior", "p", "--dvae", "d", "--caption", "x", "--out", place.path().string()}),
      "does not exist yet, is empty or holds an interrupted run");
}

}  // namespace
}  // namespace dalle::integration

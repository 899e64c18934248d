// Runs that are stopped, killed or run out of disk go on as if nothing had been.
#include "integration/tiny_pipeline.h"

namespace dalle::integration {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

/// A run of `num_steps` without a break, to compare with.
fs::path straight_run(const Workplace& place, int64_t num_steps) {
  place.train_well("dvae", dvae_yaml(num_steps), "straight");
  return place / "straight/checkpoints/latest";
}

int64_t lines_in(const fs::path& file) {
  if (!fs::exists(file)) return 0;
  const std::string text = read_file(file);
  return std::count(text.begin(), text.end(), '\n');
}

/// Each step is logged exactly once, in order.
void expect_every_step_once(const fs::path& run, int64_t num_steps) {
  const auto lines = train_lines(run);
  ASSERT_EQ(static_cast<int64_t>(lines.size()), num_steps);
  for (int64_t i = 0; i < num_steps; ++i) EXPECT_EQ(lines[static_cast<size_t>(i)]["step"], i + 1);
}

TEST(Interruption, ASignalSavesAndGivesExitCode3) {
  for (const int signal : {SIGTERM, SIGINT}) {
    const Workplace place("signal");
    const std::string config = place.file("run.yaml", dvae_yaml(100000));
    Process process("train-dvae", {config, "--run-dir", place.at("run"), "--threads", "1"});
    ASSERT_TRUE(
        wait_for("five steps", [&] { return lines_in(place / "run/metrics.jsonl") >= 5 || process.has_ended(); }));
    process.kill(signal);
    const auto stopped = process.wait();
    ASSERT_EQ(stopped.exit_code, 3) << stopped.err;
    EXPECT_THAT(stopped.err, AllOf(HasSubstr("stopped by a signal at step"), HasSubstr("--resume=")));
    const int64_t step = storage::load_latest_good(place / "run").checkpoint.step;
    EXPECT_GE(step, 5);
    const auto resumed = place.resume("dvae", "run", {"--set", str("trainer.num_steps=", step + 3)});
    ASSERT_EQ(resumed.exit_code, 0) << resumed.err;
    EXPECT_THAT(resumed.err, HasSubstr(str("resuming at step ", step)));
    expect_same_weights(place / "run/checkpoints/latest", straight_run(place, step + 3));
    expect_every_step_once(place / "run", step + 3);
  }
}

TEST(Interruption, AKilledRunGoesOnFromItsLastCheckpoint) {
  const Workplace place("kill");
  std::string yaml = dvae_yaml(100000);
  yaml.replace(yaml.find("checkpoint_interval_steps: 0"), 28, "checkpoint_interval_steps: 2");
  const std::string config = place.file("run.yaml", yaml);
  int64_t last = 0;
  for (const std::string how : {"--run-dir", "--resume"}) {
    std::vector<std::string> arguments{"--threads", "1", "--run-dir", place.at("run")};
    if (how == "--resume")
      arguments.push_back(how);
    else
      arguments.insert(arguments.begin(), config);
    Process process("train-dvae", arguments);
    ASSERT_TRUE(wait_for("a checkpoint", [&] {
      const auto names = storage::list_checkpoints(place / "run");
      return process.has_ended() || (!names.empty() && names.back() > storage::checkpoint_name(last + 5));
    }));
    process.kill(SIGKILL);
    const auto killed = process.wait();
    ASSERT_EQ(killed.signal, SIGKILL) << killed.err;
    const int64_t step = storage::load_latest_good(place / "run").checkpoint.step;
    EXPECT_GT(step, last);
    last = step;
  }
  const auto resumed = place.resume("dvae", "run", {"--set", str("trainer.num_steps=", last + 3)});
  ASSERT_EQ(resumed.exit_code, 0) << resumed.err;
  expect_same_weights(place / "run/checkpoints/latest", straight_run(place, last + 3));
  expect_every_step_once(place / "run", last + 3);
  for (const auto& entry : fs::directory_iterator(place / "run/checkpoints")) {
    const std::string name = entry.path().filename().string();
    EXPECT_FALSE(name.starts_with("step-") && name.find(".tmp-") != std::string::npos) << name << " was left behind";
  }
}

/// What comes after the checkpoint that a run goes back to is neither mixed with the new steps nor lost.
TEST(Interruption, ARunGoesBackToAnOlderCheckpoint) {
  const Workplace place("back");
  std::string yaml = dvae_yaml(8);
  yaml.replace(yaml.find("checkpoint_interval_steps: 0"), 28, "checkpoint_interval_steps: 2\n  keep_checkpoints: 9");
  ASSERT_EQ(place.train("dvae", yaml, "run").exit_code, 0);
  const auto back = run("train-dvae", {"--threads", "1", "--resume=" + place.at("run/checkpoints/step-00000004"),
                                       "--set", "trainer.num_steps=5"});
  ASSERT_EQ(back.exit_code, 0) << back.err;
  EXPECT_THAT(back.err,
              HasSubstr("2 later checkpoints are kept aside as checkpoints/left-step-00000006 .. left-step-00000008"));
  EXPECT_EQ(storage::list_checkpoints(place / "run").back(), "step-00000005");
  expect_same_weights(place / "run/checkpoints/latest", straight_run(place, 5));
  EXPECT_EQ(storage::load_checkpoint(place / "run/checkpoints/left-step-00000008").step, 8);
  expect_every_step_once(place / "run", 5);
}

TEST(Interruption, KeysThatCannotChangeAreRefusedInAnEditedConfigToo) {
  const Workplace place("edited");
  ASSERT_EQ(place.train("dvae", dvae_yaml(2), "run").exit_code, 0);
  std::string yaml = read_file(place / "run/config.yaml");
  const auto change = [&](const std::string& from, const std::string& to) {
    ASSERT_NE(yaml.find(from), std::string::npos) << yaml;
    yaml.replace(yaml.find(from), from.size(), to);
    write_file(place / "run/config.yaml", yaml);
  };
  change("num_steps: 2", "num_steps: 3");
  change("seed: 1", "seed: 5");
  const auto refused = place.resume("dvae", "run", {});
  EXPECT_EQ(refused.exit_code, 2);
  EXPECT_THAT(refused.err, AllOf(HasSubstr("config.yaml: trainer.seed: expected '1' as in "),
                                 HasSubstr("step-00000002"), HasSubstr("got '5'"), HasSubstr("start a new run")));
  change("seed: 5", "seed: 1");
  EXPECT_EQ(place.resume("dvae", "run", {}).exit_code, 0);
}

TEST(Interruption, OtherDataThanBeforeAreSaid) {
  const Workplace place("other-data");
  fs::copy_file(emoji("train.tar"), place / "data.tar");
  ASSERT_EQ(place.train("dvae", dvae_yaml(2, place.at("data.tar")), "run").exit_code, 0);
  const auto same = place.resume("dvae", "run", {"--set", "trainer.num_steps=3"});
  EXPECT_THAT(same.err, Not(HasSubstr("training data have changed")));
  // Files may lie elsewhere by now: where is no part of a run, what is in them is.
  fs::rename(place / "data.tar", place / "moved.tar");
  const auto moved = place.resume(
      "dvae", "run", {"--set", "trainer.num_steps=4", "--set", "data.sources[0].path=" + place.at("moved.tar")});
  EXPECT_EQ(moved.exit_code, 0) << moved.err;
  EXPECT_THAT(moved.err, Not(HasSubstr("training data have changed")));
  fs::copy_file(emoji("val.tar"), place / "moved.tar", fs::copy_options::overwrite_existing);
  const auto other = place.resume("dvae", "run", {"--set", "trainer.num_steps=5"});
  EXPECT_EQ(other.exit_code, 0) << other.err;
  EXPECT_THAT(other.err, HasSubstr("warning: the training data have changed since this checkpoint ("));
}

TEST(Interruption, AFullDiskLeavesTheLastCheckpoint) {
  const Workplace place("full-disk");
  // Big enough that the limit below hits its checkpoints and nothing else.
  const auto yaml = [](int64_t num_steps) {
    std::string text = dvae_yaml(num_steps);
    return text.replace(text.find("hidden_dim: 8"), 13, "hidden_dim: 48");
  };
  place.train_well("dvae", yaml(3), "run");
  const auto model = place / "run/checkpoints/step-00000003/model.safetensors";
  ASSERT_GT(fs::file_size(model), 1U << 20);
  const auto full =
      place.resume("dvae", "run", {"--set", "trainer.num_steps=6"}, {.max_file_bytes = fs::file_size(model) / 2});
  EXPECT_EQ(full.exit_code, 1) << full.err;
  EXPECT_THAT(full.err, AllOf(HasSubstr("error: train-dvae"), HasSubstr("model.safetensors")));
  EXPECT_EQ(storage::list_checkpoints(place / "run"), std::vector<std::string>{"step-00000003"});
  EXPECT_EQ(listing(place / "run/checkpoints").size(), listing(place / "run/checkpoints/step-00000003").size() + 2)
      << "that one, the link, and nothing half-written";
  EXPECT_EQ(run("inspect-checkpoint", {place.at("run"), "--verify"}).exit_code, 0);
  const auto resumed = place.resume("dvae", "run", {"--set", "trainer.num_steps=6"});
  ASSERT_EQ(resumed.exit_code, 0) << resumed.err;
  place.train_well("dvae", yaml(6), "straight");
  expect_same_weights(place / "run/checkpoints/latest", place / "straight/checkpoints/latest");
  expect_every_step_once(place / "run", 6);
}

TEST(Interruption, TwoProcessesCannotTrainInOneRun) {
  const Workplace place("two");
  const std::string config = place.file("run.yaml", dvae_yaml(100000));
  Process process("train-dvae", {config, "--run-dir", place.at("run"), "--threads", "1"});
  ASSERT_TRUE(wait_for("a step", [&] { return lines_in(place / "run/metrics.jsonl") >= 1 || process.has_ended(); }));
  const auto second = place.resume("dvae", "run");
  EXPECT_EQ(second.exit_code, 2);
  EXPECT_THAT(second.err, HasSubstr("locked by process"));
  process.kill(SIGTERM);
  EXPECT_EQ(process.wait().exit_code, 3);
}

}  // namespace
}  // namespace dalle::integration

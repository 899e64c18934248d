// ctest: slow
// What ranks split changes where numbers are kept, not the numbers; checkpoints can be read under any layout.
#include <ATen/ATen.h>

#include "dalle/models/load.h"
#include "integration/run_values.h"

namespace dalle::integration {
namespace {

using ::testing::HasSubstr;

struct Layout {
  int ranks;
  std::string sharding;
  int group_size = 0;
  int micro_batch_size = 0;
  bool activation_checkpointing = false;

  std::string name() const {
    return str(ranks, "-", sharding, "-", group_size, "-", micro_batch_size,
               activation_checkpointing ? "-checkpointed" : "");
  }
  std::vector<std::string> arguments() const {
    return {"--set", "trainer.sharding=" + sharding,
            "--set", str("trainer.shard_group_size=", group_size),
            "--set", str("trainer.micro_batch_size=", micro_batch_size),
            "--set", str("trainer.activation_checkpointing=", activation_checkpointing ? "true" : "false")};
  }
};

const std::vector<Layout> kLayouts = {
    {2, "full"},      {4, "full", 0, 1},   {2, "optimizer"},       {4, "optimizer", 0, 1},
    {4, "hybrid", 2}, {4, "hybrid", 2, 1}, {2, "full", 0, 2, true}};
const std::vector<Layout> kFewLayouts = {{2, "full", 0, 2}, {4, "hybrid", 2}, {2, "optimizer", 0, 2}};

/// Trains, or goes on with, `run` in a layout.
void train_in(const Workplace& place, const std::string& kind, const std::string& run, const Layout& layout,
              std::vector<std::string> more) {
  const auto arguments = layout.arguments();
  more.insert(more.end(), arguments.begin(), arguments.end());
  const auto outcomes = train_on_ranks(place, layout.ranks, kind, run, more);
  expect_all_ended_with(outcomes, 0);
  if (layout.ranks > 1 && layout.sharding != "none") {
    EXPECT_THAT(outcomes[0].err, HasSubstr("sharding " + layout.sharding));
  }
}

void compare_layouts(const std::string& kind, const std::string& yaml, const std::vector<Layout>& layouts,
                     const std::function<void(const fs::path& run, const fs::path& alone)>& compare) {
  const Parts place("sharding-" + kind);
  const std::string command = kind == "vq" ? "dvae" : kind, config = place.file(kind + ".yaml", yaml);
  train_in(place, command, "alone", {1, "none"}, {config});
  for (const Layout& layout : layouts) {
    train_in(place, command, layout.name(), layout, {config});
    compare(place / layout.name(), place / "alone");
    EXPECT_EQ(storage::list_checkpoints(place / layout.name()), storage::list_checkpoints(place / "alone"));
  }
}

void expect_shards_agree_in_f64(const std::string& kind, const std::vector<Layout>& layouts) {
  std::string yaml = spread_yaml(kind, 20);
  yaml.replace(yaml.find("precision: f32"), 14, "precision: f64");
  compare_layouts(kind, yaml, layouts, [](const fs::path& run, const fs::path& alone) {
    expect_same_values(run, alone, "train", 1e-10);
    expect_same_values(run, alone, "validation", 1e-10);
  });
}

TEST(Sharding, ThePriorsLossesAreThoseOfOneProcess) { expect_shards_agree_in_f64("prior", kLayouts); }
TEST(Sharding, ClipsLossesAreThoseOfOneProcess) { expect_shards_agree_in_f64("clip", kFewLayouts); }
TEST(Sharding, TheDvaesLossesAreThoseOfOneProcess) { expect_shards_agree_in_f64("dvae", kFewLayouts); }
TEST(Sharding, ACodebooksLossesAreThoseOfOneProcess) { expect_shards_agree_in_f64("vq", {{2, "full"}}); }

TEST(ShardingInF32, ThePriorsLossesAreThoseOfOneProcess) {
  compare_layouts("prior", spread_yaml("prior", 50), kLayouts,
                  [](const fs::path& run, const fs::path& alone) { expect_same_losses(run, alone, 1e-5); });
}

/// Matrices travel in bf16: to what each use rounds them anyway. Two ranks' sums have one order.
TEST(ShardingInBf16, ThePriorsLossesAreThoseOfDataParallel) {
  const Parts place("sharding-bf16");
  std::string yaml = spread_yaml("prior", 20);
  yaml.replace(yaml.find("precision: f32"), 14, "precision: bf16");
  const std::string config = place.file("prior.yaml", yaml);
  const Layout whole{2, "none"}, split{2, "full"};
  for (const Layout& layout : {whole, split}) {
    train_in(place, "prior", layout.name(), layout, {config, "--set", "trainer.clip_norm=0"});
  }
  expect_same_losses(place / split.name(), place / whole.name(), 0);
}

TEST(ShardedCheckpoints, GoOnUnderAnyLayout) {
  const Parts place("sharding-moved");
  struct Case {
    std::string kind, precision;
    double of_losses, of_tensors;
  };
  // In f32 AdamW makes a full update of a gradient that is nothing but rounding: there only losses say
  // something, and of the tensors that all are there in their shapes.
  for (const auto& [kind, precision, of_losses, of_tensors] :
       {Case{"prior", "f64", 1e-10, 1e-9}, Case{"dvae", "f64", 1e-10, 1e-9}, Case{"prior", "f32", 1e-5, 1}}) {
    const std::string run = kind + "-" + precision, moved = run + "-moved", alone = run + "-alone";
    std::string yaml = spread_yaml(kind, 20);
    yaml.replace(yaml.find("precision: f32"), 14, "precision: " + precision);
    const std::string config = place.file(run + ".yaml", yaml);
    train_in(place, kind, alone, {1, "none"}, {config});
    train_in(place, kind, moved, {4, "full"}, {config, "--set", "trainer.num_steps=4"});
    int64_t steps = 4;
    for (const Layout& layout :
         {Layout{4, "hybrid", 2}, Layout{1, "none"}, Layout{2, "optimizer"}, Layout{2, "full"}}) {
      steps += 4;
      train_in(place, kind, moved, layout, {"--resume", "--set", str("trainer.num_steps=", steps)});
    }
    expect_same_losses(place / moved, place / alone, of_losses);
    EXPECT_EQ(train_lines(place / moved).size(), 20u);
    const auto load = [&](const std::string& name) {
      return storage::load_checkpoint(place / name / "checkpoints/step-00000020");
    };
    const auto sharded = load(moved), whole = load(alone);
    EXPECT_TRUE(fs::exists(place / moved / "checkpoints/step-00000020/model-00002-of-00002.safetensors"));
    EXPECT_LT(largest_difference(sharded.model, whole.model), of_tensors);
    EXPECT_LT(largest_difference(sharded.ema, whole.ema), of_tensors);
    EXPECT_LT(largest_difference(sharded.optimizer, whole.optimizer), of_tensors);
  }
  // A single process draws from what several ranks wrote.
  const auto prior = models::load_prior(place / "prior-f32-moved", {});
  EXPECT_EQ(prior.step, 20);
  EXPECT_EQ(run("inspect-checkpoint", {place.at("prior-f32-moved")}).exit_code, 0);
  const auto drawn = run("sample-and-rerank", {"--prior", place.at("prior-f32-moved"), "--dvae", place.at("dvae"),
                                               "--caption", "a red heart", "--candidates", "2", "--keep", "1",
                                               "--rerank", "likelihood", "--threads", "1", "--out", place.at("drawn")});
  EXPECT_EQ(drawn.exit_code, 0) << drawn.err;
}

/// All parts of two checkpoints, byte for byte.
void expect_same_parts(const fs::path& actual, const fs::path& expected) {
  int64_t compared = 0;
  for (const auto& entry : fs::directory_iterator(expected)) {
    if (entry.path().extension() != ".safetensors") continue;
    const std::string name = entry.path().filename().string();
    EXPECT_TRUE(read_file(actual / name) == read_file(expected / name)) << actual << " " << name;
    ++compared;
  }
  EXPECT_EQ(compared, 2 * 3) << "weights, averages and moments of two ranks";
}

TEST(ShardedCheckpoints, AResumedRunIsBitwiseTheSame) {
  const Parts place("sharding-bitwise");
  const std::string config = place.file("prior.yaml", spread_yaml("prior", 10));
  for (const Layout& layout : {Layout{2, "full"}, Layout{4, "hybrid", 2}, Layout{2, "optimizer"}}) {
    train_in(place, "prior", layout.name() + "-straight", layout, {config});
    train_in(place, "prior", layout.name(), layout, {config, "--set", "trainer.num_steps=5"});
    train_in(place, "prior", layout.name(), layout, {"--resume", "--set", "trainer.num_steps=10"});
    expect_same_parts(place / layout.name() / "checkpoints/latest",
                      place / (layout.name() + "-straight") / "checkpoints/latest");
  }
}

TEST(ShardedCheckpoints, AKilledRankLeavesTheLastOneWhole) {
  const Parts place("sharding-killed");
  std::string yaml = spread_yaml("prior", 60);
  yaml.replace(yaml.find("checkpoint_interval_steps: 0"), 28, "checkpoint_interval_steps: 1");
  const std::string config = place.file("prior.yaml", yaml);
  const Layout layout{2, "full"};
  train_in(place, "prior", "straight", layout, {config});
  for (const int killed : {1, 0, 1}) {
    std::vector<std::string> arguments = layout.arguments();
    arguments.insert(arguments.end(),
                     {"--run-dir", place.at("run"), "--threads", "1", "--set", "trainer.timeout_seconds=20"});
    const bool is_new = !fs::exists(place / "run");
    arguments.insert(is_new ? arguments.begin() : arguments.end(), is_new ? config : "--resume");
    const auto seen = storage::list_checkpoints(place / "run");
    RankProcesses ranks(2, "train-prior", [&](int) { return arguments; });
    // Killed when a new checkpoint is being written or has just been: each step writes one.
    ASSERT_TRUE(wait_for("a checkpoint", [&] {
      const auto names = storage::list_checkpoints(place / "run");
      return ranks.rank(0).has_ended() || (!names.empty() && (seen.empty() || names.back() > seen.back()));
    }));
    ranks.rank(killed).kill(SIGKILL);
    const auto outcomes = ranks.wait();
    EXPECT_EQ(outcomes[static_cast<size_t>(killed)].signal, SIGKILL);
    EXPECT_EQ(outcomes[static_cast<size_t>(1 - killed)].exit_code, 1);
    EXPECT_NO_THROW(storage::latest_good_folder(place / "run"));
  }
  train_in(place, "prior", "run", layout, {"--resume"});
  expect_same_parts(place / "run/checkpoints/latest", place / "straight/checkpoints/latest");
  for (const auto& entry : fs::directory_iterator(place / "run/checkpoints")) {
    EXPECT_EQ(entry.path().filename().string().find(".tmp-"), std::string::npos) << entry.path();
  }
}

TEST(Sharding, ARunStartsFromAnothersWeights) {
  const Parts place("sharding-init");
  const std::string config = place.file("prior.yaml", spread_yaml("prior", 6));
  train_in(place, "prior", "first", {2, "full"}, {config});
  const std::vector<std::string> arguments{config, "--set", "trainer.init_from=" + place.at("first"), "--set",
                                           "trainer.seed=5"};
  train_in(place, "prior", "alone", {1, "none"}, arguments);
  for (const Layout& layout : {Layout{2, "full"}, Layout{2, "optimizer"}, Layout{2, "hybrid", 2}}) {
    train_in(place, "prior", layout.name(), layout, arguments);
    expect_same_losses(place / layout.name(), place / "alone", 1e-5);
  }
}

TEST(Sharding, GroupsThatDoNotShareOutTheRanksAreRefused) {
  const Parts place("sharding-refused");
  const std::string config = place.file("dvae.yaml", spread_yaml("dvae", 5));
  const auto outcomes = train_on_ranks(
      place, 2, "dvae", "run", {config, "--set", "trainer.sharding=hybrid", "--set", "trainer.shard_group_size=3"});
  expect_all_ended_with(outcomes, 2);
  EXPECT_THAT(outcomes[0].err, HasSubstr("trainer.shard_group_size: expected a divisor of the 2 ranks"));
}

}  // namespace
}  // namespace dalle::integration

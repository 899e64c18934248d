// ctest: slow
// A training does not depend on how its global batch is split over ranks and micro-batches.
#include "integration/run_values.h"

namespace dalle::integration {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

struct Layout {
  int ranks = 1;
  int micro_batch_size = 0;
};

constexpr Layout kLayouts[] = {{1, 2}, {2, 0}, {2, 2}, {4, 0}, {4, 1}};

std::string command_of(const std::string& kind) { return kind == "vq" ? "dvae" : kind; }

std::string name_of(const Layout& layout) { return str(layout.ranks, "-ranks-micro-", layout.micro_batch_size); }

fs::path train_with(const Workplace& place, const std::string& kind, const std::string& config, const Layout& layout) {
  const std::string run = kind + "-" + name_of(layout);
  const auto outcomes = train_on_ranks(place, layout.ranks, command_of(kind), run,
                                       {config, "--set", str("trainer.micro_batch_size=", layout.micro_batch_size)});
  expect_all_ended_with(outcomes, 0);
  for (size_t rank = 1; rank < outcomes.size(); ++rank) EXPECT_EQ(outcomes[rank].err, "") << "only rank 0 talks";
  return place / run;
}

/// Trains with `yaml` in each layout; `compare` sees each run beside that of one process in one pass.
void compare_layouts(const std::string& kind, const std::string& yaml,
                     const std::function<void(const fs::path& run, const fs::path& alone)>& compare) {
  const Parts place("layouts-" + kind);
  const std::string config = place.file(kind + ".yaml", yaml);
  const fs::path alone = train_with(place, kind, config, {1, 0});
  EXPECT_NE(values_of(alone, "train").front().at("loss"), values_of(alone, "train").back().at("loss"));
  for (const Layout& layout : kLayouts) {
    const fs::path run = train_with(place, kind, config, layout);
    compare(run, alone);
    EXPECT_EQ(storage::list_checkpoints(run), storage::list_checkpoints(alone));
  }
}

/// 20 steps where everything is f64: what differs is the order of sums alone.
void expect_layouts_agree_in_f64(const std::string& kind) {
  std::string yaml = spread_yaml(kind, 20);
  yaml.replace(yaml.find("precision: f32"), 14, "precision: f64");
  compare_layouts(kind, yaml, [](const fs::path& run, const fs::path& alone) {
    expect_same_values(run, alone, "train", 1e-10);
    expect_same_values(run, alone, "validation", 1e-10);
  });
}

/// 50 steps of f32: the losses.
void expect_losses_agree_in_f32(const std::string& kind, const std::string& more_yaml = "") {
  compare_layouts(kind, spread_yaml(kind, 50) + more_yaml,
                  [](const fs::path& run, const fs::path& alone) { expect_same_losses(run, alone, 1e-5); });
}

TEST(DataParallel, TheDvaesLossesAreThoseOfOneProcess) { expect_layouts_agree_in_f64("dvae"); }
TEST(DataParallel, ClipsLossesAreThoseOfOneProcess) { expect_layouts_agree_in_f64("clip"); }
TEST(DataParallel, ThePriorsLossesAreThoseOfOneProcess) { expect_layouts_agree_in_f64("prior"); }
TEST(DataParallel, ACodebooksLossesAreThoseOfOneProcess) { expect_layouts_agree_in_f64("vq"); }

// Adam divides by the root of the second moment: without eps, what is rounding noise in a gradient would become whole steps,
// and this loss passes through 0.
TEST(DataParallelInF32, TheDvaesLossesAreThoseOfOneProcess) {
  expect_losses_agree_in_f32("dvae", "optimizer:\n  eps: 1e-3\n");
}
TEST(DataParallelInF32, ClipsLossesAreThoseOfOneProcess) { expect_losses_agree_in_f32("clip"); }
TEST(DataParallelInF32, ThePriorsLossesAreThoseOfOneProcess) { expect_losses_agree_in_f32("prior"); }

// ------------------------------------------------------------------------------------------------- stopping and resuming

TEST(DataParallel, ARunGoesOnWithAnotherNumberOfRanks) {
  const Parts place("ranks-resume");
  for (const std::string kind : {"dvae", "clip", "prior"}) {
    const std::string config = place.file(kind + ".yaml", spread_yaml(kind, 18));
    expect_all_ended_with(train_on_ranks(place, 1, kind, kind + "-alone", {config}), 0);
    expect_all_ended_with(train_on_ranks(place, 2, kind, kind + "-moved", {config, "--set", "trainer.num_steps=6"}), 0);
    for (const auto& [ranks, steps] : {std::pair{1, 12}, std::pair{2, 18}}) {
      expect_all_ended_with(
          train_on_ranks(place, ranks, kind, kind + "-moved", {"--resume", "--set", str("trainer.num_steps=", steps)}),
          0);
    }
    expect_same_losses(place / (kind + "-moved"), place / (kind + "-alone"), 1e-5);
  }
}

TEST(DataParallel, ARunThatGoesOnWithAsManyRanksIsBitwiseTheSame) {
  const Parts place("ranks-bitwise");
  const std::string config = place.file("prior.yaml", spread_yaml("prior", 10));
  expect_all_ended_with(train_on_ranks(place, 4, "prior", "straight", {config}), 0);
  expect_all_ended_with(train_on_ranks(place, 4, "prior", "parts", {config, "--set", "trainer.num_steps=5"}), 0);
  expect_all_ended_with(train_on_ranks(place, 4, "prior", "parts", {"--resume", "--set", "trainer.num_steps=10"}), 0);
  expect_same_weights(place / "parts/checkpoints/latest", place / "straight/checkpoints/latest");
}

TEST(DataParallel, ASignalToOneRankStopsAllAfterTheSameStep) {
  const Workplace place("ranks-signal");
  const std::string config = place.file("dvae.yaml", spread_yaml("dvae", 100000));
  RankProcesses ranks(2, "train-dvae", [&](int) {
    return std::vector<std::string>{config, "--run-dir", place.at("run"), "--threads", "1"};
  });
  ASSERT_TRUE(wait_for("five steps", [&] {
    const fs::path metrics = place / "run/metrics.jsonl";
    const std::string text = fs::exists(metrics) ? read_file(metrics) : "";
    return std::count(text.begin(), text.end(), '\n') >= 5 || ranks.rank(0).has_ended();
  }));
  ranks.rank(1).kill(SIGTERM);
  const auto outcomes = ranks.wait();
  expect_all_ended_with(outcomes, 3);
  EXPECT_THAT(outcomes[0].err, HasSubstr("stopped by a signal at step"));
  EXPECT_EQ(outcomes[1].err, "");
  const int64_t step = storage::load_latest_good(place / "run").checkpoint.step;
  EXPECT_EQ(static_cast<int64_t>(train_lines(place / "run").size()), step);
  expect_all_ended_with(
      train_on_ranks(place, 2, "dvae", "run", {"--resume", "--set", str("trainer.num_steps=", step + 2)}), 0);
  EXPECT_EQ(static_cast<int64_t>(train_lines(place / "run").size()), step + 2);
}

// ------------------------------------------------------------------------------------------------------------- refusals

TEST(DataParallel, RanksThatDifferAreRefused) {
  const Workplace place("ranks-differ");
  const std::string config = place.file("dvae.yaml", spread_yaml("dvae", 5));
  const auto outcomes =
      RankProcesses(2, "train-dvae", [&](int rank) {
        return std::vector<std::string>{config, "--run-dir", place.at("run"), "--set", str("trainer.seed=", 7 + rank)};
      }).wait();
  expect_all_ended_with(outcomes, 2);
  for (const auto& outcome : outcomes) {
    EXPECT_THAT(outcome.err, AllOf(HasSubstr("rank 1: expected trainer.seed '7'"), HasSubstr("got '8'")));
  }
  EXPECT_THAT(outcomes[1].err, ::testing::StartsWith("[rank 1] error: "));
  EXPECT_FALSE(fs::exists(place / "run"));
}

TEST(DataParallel, ABatchThatCannotBeSharedOutIsRefused) {
  const Workplace place("ranks-batch");
  const std::string config = place.file("dvae.yaml", spread_yaml("dvae", 5));
  for (const auto& [ranks, micro] : {std::pair{3, 0}, std::pair{2, 8}}) {
    const auto outcomes =
        train_on_ranks(place, ranks, "dvae", "run", {config, "--set", str("trainer.micro_batch_size=", micro)});
    expect_all_ended_with(outcomes, 2);
    EXPECT_THAT(outcomes[0].err, AllOf(HasSubstr("trainer.batch_size: expected a multiple of"),
                                       HasSubstr(str("the ", ranks, " ranks")), HasSubstr("got 8")));
  }
  EXPECT_FALSE(fs::exists(place / "run"));
}

TEST(DataParallel, WhatRankZeroRefusesEndsAllRanks) {
  const Workplace place("ranks-used");
  const std::string config = place.file("dvae.yaml", spread_yaml("dvae", 5));
  place.file("run", "a file where the run directory should be");
  const auto outcomes = train_on_ranks(place, 2, "dvae", "run", {config});
  expect_all_ended_with(outcomes, 2);
  EXPECT_THAT(outcomes[0].err, HasSubstr("expected a directory, got a file"));
  EXPECT_THAT(outcomes[1].err, HasSubstr("rank 0: "));
}

}  // namespace
}  // namespace dalle::integration

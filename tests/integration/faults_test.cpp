// ctest: slow
// Ranks of a training that are killed, stopped or fail: the others end in time and say which and where, and a restart by a
// launcher, which does not say --resume, goes on as if nothing had been.
#include "integration/run_values.h"

namespace dalle::integration {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using Clock = std::chrono::steady_clock;

constexpr int kTimeoutSeconds = 8;

/// Saves after every other step, over and over.
std::string endless_yaml(int hidden_dim = 8) {
  std::string yaml = spread_yaml("dvae", 100000);
  const auto replace = [&](const std::string& from, const std::string& to) {
    yaml.replace(yaml.find(from), from.size(), to);
  };
  replace("checkpoint_interval_steps: 0", str("checkpoint_interval_steps: 2\n  timeout_seconds: ", kTimeoutSeconds));
  replace("hidden_dim: 8", str("hidden_dim: ", hidden_dim));
  return yaml;
}

class FaultyRun : public Workplace {
 public:
  FaultyRun(const std::string& name, const std::string& yaml) : Workplace(name), config_(file("dvae.yaml", yaml)) {}

  RankProcesses start(int size, const std::vector<std::string>& more = {},
                      const RankProcesses::Adjust& adjust = nullptr, const std::string& run = "run") const {
    return {size, "train-dvae",
            [&](int) {
              std::vector<std::string> arguments{config_, "--run-dir", at(run), "--threads", "1"};
              arguments.insert(arguments.end(), more.begin(), more.end());
              return arguments;
            },
            adjust};
  }
  /// As Slurm does after a requeue: the same command once more.
  RankProcesses restart(int size, const std::vector<std::string>& more) const {
    return start(size, more, [](int, Launch& launch) { launch.environment.emplace_back("SLURM_RESTART_COUNT", "1"); });
  }
  bool has_steps(int64_t count) const {
    const fs::path metrics = *this / "run/metrics.jsonl";
    const std::string text = fs::exists(metrics) ? read_file(metrics) : "";
    return std::count(text.begin(), text.end(), '\n') >= count;
  }
  /// Waits until some steps are done, and until other ranks have heard of them.
  void come_to_steps(RankProcesses& ranks) const {
    ASSERT_TRUE(wait_for("ten steps", [&] { return has_steps(10) || ranks.rank(0).has_ended(); }));
    std::this_thread::sleep_for(std::chrono::seconds(kTimeoutSeconds) / 8);
  }
  bool is_saving() const {
    std::error_code error;
    for (fs::directory_iterator entry(*this / "run/checkpoints", error), end; !error && entry != end;
         entry.increment(error)) {
      if (entry->path().filename().string().find(".tmp-") != std::string::npos) return true;
    }
    return false;
  }

 private:
  std::string config_;
};

struct Loss {
  int rank = 0;
  int signal = SIGKILL;
};

/// Sends the signal; the others must end in time, with exit code 1 and a message that says `what` of the rank.
void lose(RankProcesses& ranks, int size, const Loss& loss, const ::testing::Matcher<std::string>& message) {
  const auto start = Clock::now();
  ranks.rank(loss.rank).kill(loss.signal);
  const auto others_ended = [&] {
    for (int rank = 0; rank < size; ++rank) {
      if (rank != loss.rank && !ranks.rank(rank).has_ended()) return false;
    }
    return true;
  };
  ASSERT_TRUE(wait_for("the end of the others", others_ended));
  EXPECT_LT(Clock::now() - start, std::chrono::seconds(kTimeoutSeconds));
  ranks.rank(loss.rank).kill(SIGKILL);
  const auto outcomes = ranks.wait();
  for (int rank = 0; rank < size; ++rank) {
    const auto& outcome = outcomes[static_cast<size_t>(rank)];
    if (rank == loss.rank) {
      EXPECT_EQ(outcome.signal, SIGKILL) << outcome.err;
    } else {
      EXPECT_EQ(outcome.exit_code, 1) << "rank " << rank << ", signal " << outcome.signal << "\n" << outcome.err;
      EXPECT_THAT(outcome.err, message) << "rank " << rank;
    }
  }
}

TEST(Faults, ARankKilledInTrainingEndsTheOthersAndARestartGoesOn) {
  for (const auto& [size, lost] : {std::pair{2, 0}, std::pair{4, 2}}) {
    const FaultyRun place("faults-killed", endless_yaml());
    RankProcesses ranks = place.start(size);
    place.come_to_steps(ranks);
    lose(ranks, size, {lost}, AllOf(HasSubstr(str("rank ", lost, " was lost")), HasSubstr("last seen at step ")));
    const int64_t step = storage::load_latest_good(place / "run").checkpoint.step;
    const std::vector<std::string> to_end{"--set", str("trainer.num_steps=", step + 4)};
    const auto restarted = place.restart(size, to_end).wait();
    expect_all_ended_with(restarted, 0);
    EXPECT_THAT(restarted[0].err, HasSubstr(str("resuming at step ", step)));
    expect_all_ended_with(place.start(size, to_end, nullptr, "straight").wait(), 0);
    expect_same_weights(place / "run/checkpoints/latest", place / "straight/checkpoints/latest");
  }
}

TEST(Faults, ARankKilledWhileItSavesLeavesTheLastCheckpoint) {
  for (const auto& [sharding, lost] : {std::pair{"none", 0}, std::pair{"none", 1}, std::pair{"full", 1}}) {
    const FaultyRun place("faults-saving", endless_yaml(/*hidden_dim=*/24));
    const std::vector<std::string> layout{"--set", str("trainer.sharding=", sharding)};
    RankProcesses ranks = place.start(2, layout);
    ASSERT_TRUE(wait_for("a later checkpoint being written",
                         [&] { return (place.has_steps(6) && place.is_saving()) || ranks.rank(0).has_ended(); }));
    lose(ranks, 2, {lost}, HasSubstr(str("rank ", lost, " was lost")));
    const int64_t step = storage::load_latest_good(place / "run").checkpoint.step;
    EXPECT_GE(step, 2);
    std::vector<std::string> to_end = layout;
    to_end.insert(to_end.end(), {"--set", str("trainer.num_steps=", step + 4)});
    expect_all_ended_with(place.restart(2, to_end).wait(), 0);
    EXPECT_FALSE(place.is_saving()) << "what was being written is removed";
    expect_all_ended_with(place.start(2, to_end, nullptr, "straight").wait(), 0);
    for (const auto& entry : fs::directory_iterator(place / "straight/checkpoints/latest/")) {
      if (entry.path().extension() != ".safetensors") continue;
      const auto other = place / "run/checkpoints/latest" / entry.path().filename();
      EXPECT_TRUE(read_file(entry.path()) == read_file(other)) << other;
    }
  }
}

TEST(Faults, AStoppedRankEndsTheOthersInTime) {
  for (const int lost : {0, 1}) {
    const FaultyRun place("faults-stopped", endless_yaml());
    RankProcesses ranks = place.start(2);
    place.come_to_steps(ranks);
    lose(ranks, 2, {lost, SIGSTOP}, AllOf(HasSubstr(str("rank ", lost, " was lost")), HasSubstr("last seen at step ")));
  }
}

TEST(Faults, AFailedRankIsQuotedByTheOthers) {
  if (testing::num_gpus() > 0) GTEST_SKIP() << "NCCL's own shared memory is over the limit that stands for a full disk";
  const FaultyRun place("faults-failed", endless_yaml(/*hidden_dim=*/48));
  RankProcesses ranks = place.start(2, {}, [](int rank, Launch& launch) {
    if (rank == 0) launch.max_file_bytes = 1 << 19;  // less than its checkpoints take, as on a full disk
  });
  const auto outcomes = ranks.wait();
  expect_all_ended_with(outcomes, 1);
  EXPECT_THAT(outcomes[0].err, AllOf(HasSubstr("error: train-dvae"), HasSubstr(".safetensors")));
  EXPECT_THAT(outcomes[1].err,
              AllOf(HasSubstr("[rank 1] error: train-dvae: rank 0 failed at step "), HasSubstr(".safetensors")));
}

TEST(Faults, ARestartBeforeTheFirstCheckpointStartsAgain) {
  std::string yaml = endless_yaml();
  yaml.replace(yaml.find("checkpoint_interval_steps: 2"), 28, "checkpoint_interval_steps: 0");
  const FaultyRun place("faults-early", yaml);
  RankProcesses ranks = place.start(2);
  ASSERT_TRUE(wait_for("two steps", [&] { return place.has_steps(2) || ranks.rank(0).has_ended(); }));
  lose(ranks, 2, {1}, HasSubstr("rank 1 was lost"));
  const std::vector<std::string> to_end{"--set", "trainer.num_steps=4"};
  const auto restarted = place.restart(2, to_end).wait();
  expect_all_ended_with(restarted, 0);
  EXPECT_THAT(restarted[0].err, HasSubstr("it starts again at step 0"));
  expect_all_ended_with(place.start(2, to_end, nullptr, "straight").wait(), 0);
  expect_same_weights(place / "run/checkpoints/latest", place / "straight/checkpoints/latest");
}

}  // namespace
}  // namespace dalle::integration

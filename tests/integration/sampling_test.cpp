// sample-and-rerank that is killed, stopped, given other settings or bad input.
#include <cstdlib>
#include <map>

#include "integration/ranks.h"

namespace dalle::integration {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

const std::vector<std::string> kManyCandidates{
    "--caption", "red apple", "--caption", "a blue square", "--candidates", "300", "--batch-size", "4", "--keep", "5"};

int64_t pictures_in(const fs::path& folder) {
  if (!fs::exists(folder)) return 0;
  int64_t count = 0;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) count += entry.path().extension() == ".png";
  return count;
}

// All files of a folder by their names within it, without what says when and how fast.
std::map<std::string, std::string> results_of(const fs::path& folder) {
  std::map<std::string, std::string> files;
  for (const auto& entry : fs::recursive_directory_iterator(folder)) {
    if (!entry.is_regular_file() || entry.path().filename() == ".lock") continue;
    std::string content = read_file(entry.path());
    const std::string name = fs::relative(entry.path(), folder).string();
    if (name == "scores.json") {
      auto scores = nlohmann::json::parse(content);
      scores.erase("created");
      scores.erase("times_seconds");
      content = scores.dump();
    }
    files[name] = std::move(content);
  }
  return files;
}

TEST(Sampling, AKilledOrStoppedRunGoesOnToTheSameResults) {
  const auto& system = TinySystem::instance();
  const auto straight = run("sample-and-rerank", sample_arguments(system, "straight", kManyCandidates));
  ASSERT_EQ(straight.exit_code, 0) << straight.err;
  const auto expected = results_of(system / "straight");
  EXPECT_EQ(expected.size(), 2U * (300 + 1) + 3) << "pictures and sheets, the sheet of all, scores and the page";
  for (const int signal : {SIGKILL, SIGTERM, SIGINT}) {
    const std::string out = str("interrupted-", signal);
    const auto arguments = sample_arguments(system, out, kManyCandidates);
    Process process("sample-and-rerank", arguments);
    // Well into the second caption.
    ASSERT_TRUE(wait_for("pictures", [&] { return pictures_in(system / out) > 400 || process.has_ended(); }));
    process.kill(signal);
    const auto stopped = process.wait();
    if (signal == SIGKILL) {
      EXPECT_EQ(stopped.signal, SIGKILL);
    } else {
      EXPECT_EQ(stopped.exit_code, 3) << stopped.err;
      EXPECT_THAT(stopped.err, HasSubstr("the same command goes on"));
      EXPECT_TRUE(fs::exists(system / out / "index.html")) << "what is finished can be looked at";
    }
    EXPECT_FALSE(fs::exists(system / out / "scores.json"));
    const auto resumed = run("sample-and-rerank", arguments);
    ASSERT_EQ(resumed.exit_code, 0) << resumed.err;
    EXPECT_THAT(resumed.err, HasSubstr("going on with an interrupted run: "));
    EXPECT_TRUE(results_of(system / out) == expected) << signal;
    const auto again = run("sample-and-rerank", arguments);
    EXPECT_EQ(again.exit_code, 2) << "finished: nothing is overwritten";
  }
}

TEST(Sampling, AnInterruptedRunGoesOnOnlyWithItsOwnSettings) {
  const auto& system = TinySystem::instance();
  const auto arguments = sample_arguments(system, "other-settings", kManyCandidates);
  Process process("sample-and-rerank", arguments);
  ASSERT_TRUE(wait_for("pictures", [&] { return pictures_in(system / "other-settings") > 8 || process.has_ended(); }));
  process.kill(SIGSTOP);
  const auto beside = run("sample-and-rerank", arguments);
  EXPECT_EQ(beside.exit_code, 2) << beside.err;
  EXPECT_THAT(beside.err, HasSubstr("a directory that no other process writes, got one locked by process "));
  process.kill(SIGKILL);
  process.wait();
  const auto before = results_of(system / "other-settings");
  const std::vector<std::vector<std::string>> others{
      {"--seed", "7"}, {"--temperature", "0.5"}, {"--rerank", "likelihood"}, {"--raw-weights"}, {"--caption", "more"}};
  for (const auto& other : others) {
    auto changed = arguments;
    changed.insert(changed.end(), other.begin(), other.end());
    const auto refused = run("sample-and-rerank", changed);
    EXPECT_EQ(refused.exit_code, 2) << other[0] << refused.err;
    EXPECT_THAT(refused.err, AllOf(HasSubstr("expected the interrupted run's"), HasSubstr("hint: "))) << other[0];
  }
  EXPECT_TRUE(results_of(system / "other-settings") == before) << "nothing is lost";
  auto faster = arguments;
  *(std::find(faster.begin(), faster.end(), "--batch-size") + 1) = "64";
  EXPECT_EQ(run("sample-and-rerank", faster).exit_code, 0) << "how many at a time does not matter";
}

// ---------------------------------------------------------------------------------------------------------- several ranks

const std::vector<std::string> kFewCandidates{"--caption",    "red apple", "--caption",    "a blue square",
                                              "--candidates", "31",        "--batch-size", "4",
                                              "--keep",       "5",         "--save-tokens"};

std::vector<Outcome> draw_on_ranks(const TinySystem& system, int size, const std::string& out,
                                   const std::vector<std::string>& more = kFewCandidates) {
  return RankProcesses(size, "sample-and-rerank", [&](int) { return sample_arguments(system, out, more); }).wait();
}

/// Pictures, sheets and tokens bit for bit; scores up to the rounding of CLIP's products, which know how many they are.
void expect_same_candidates(const fs::path& actual, const fs::path& expected) {
  auto files = results_of(actual), wanted = results_of(expected);
  for (auto* some : {&files, &wanted}) some->erase("index.html");  // shows the settings
  const auto scores = nlohmann::json::parse(files.at("scores.json")).at("captions");
  const auto wanted_scores = nlohmann::json::parse(wanted.at("scores.json")).at("captions");
  ASSERT_EQ(scores.size(), wanted_scores.size());
  for (size_t i = 0; i < scores.size(); ++i) {
    const auto &some = scores[i].at("candidates"), &others = wanted_scores[i].at("candidates");
    ASSERT_EQ(some.size(), others.size());
    for (size_t rank = 0; rank < some.size(); ++rank) {
      EXPECT_EQ(some[rank].at("file"), others[rank].at("file")) << rank;
      EXPECT_NEAR(some[rank].at("score").get<double>(), others[rank].at("score").get<double>(), 1e-5) << rank;
    }
  }
  for (auto* some : {&files, &wanted}) some->erase("scores.json");
  ASSERT_EQ(files.size(), wanted.size());
  for (const auto& [name, content] : wanted) EXPECT_TRUE(files[name] == content) << name;
}

TEST(SamplingOnRanks, CandidatesAreThoseOfOneProcess) {
  const auto& system = TinySystem::instance();
  const auto alone = run("sample-and-rerank", sample_arguments(system, "alone", kFewCandidates));
  ASSERT_EQ(alone.exit_code, 0) << alone.err;
  EXPECT_EQ(results_of(system / "alone").size(), 2U * (31 + 2) + 3) << "pictures, sheets, tokens, scores, the page";
  for (const int size : {2, 3}) {
    const std::string out = str("on-", size, "-ranks");
    const auto outcomes = draw_on_ranks(system, size, out);
    expect_all_ended_with(outcomes, 0);
    EXPECT_THAT(outcomes[0].err, HasSubstr(str("4 at a time on each of ", size, " ranks")));
    EXPECT_EQ(outcomes[1].err, "") << "only rank 0 talks";
    EXPECT_EQ(json_of(system / out / "scores.json").at("settings").at("ranks"), size);
    expect_same_candidates(system / out, system / "alone");
  }
}

TEST(SamplingOnRanks, ARunGoesOnWithAnotherNumberOfRanks) {
  const auto& system = TinySystem::instance();
  ASSERT_EQ(run("sample-and-rerank", sample_arguments(system, "straight-on", kManyCandidates)).exit_code, 0);
  const fs::path out = system / "stopped-ranks";
  RankProcesses ranks(2, "sample-and-rerank",
                      [&](int) { return sample_arguments(system, "stopped-ranks", kManyCandidates); });
  const auto has_lines = [&](const char* name) {
    const fs::path journal = out / "caption-0000" / name;
    return fs::exists(journal) && !read_file(journal).empty();
  };
  ASSERT_TRUE(wait_for("candidates of both ranks", [&] {
    return (has_lines("candidates.jsonl") && has_lines("candidates-1.jsonl")) || ranks.rank(0).has_ended();
  }));
  for (const int rank : {0, 1}) ranks.rank(rank).kill(SIGTERM);
  const auto stopped = ranks.wait();
  expect_all_ended_with(stopped, 3);
  EXPECT_THAT(stopped[0].err, HasSubstr("the same command goes on"));
  EXPECT_LT(pictures_in(out), 2 * 300);
  const auto resumed = draw_on_ranks(system, 3, "stopped-ranks", kManyCandidates);
  expect_all_ended_with(resumed, 0);
  EXPECT_THAT(resumed[0].err, HasSubstr("going on with an interrupted run: "));
  expect_same_candidates(out, system / "straight-on");
}

/// A signal to one rank: the others end their shares, and all say that the run is not whole.
TEST(SamplingOnRanks, ASignalToOneRankIsTheResultOfAll) {
  const auto& system = TinySystem::instance();
  RankProcesses ranks(2, "sample-and-rerank",
                      [&](int) { return sample_arguments(system, "one-stopped", kManyCandidates); });
  const fs::path journal = system / "one-stopped/caption-0000/candidates-1.jsonl";
  ASSERT_TRUE(wait_for("a candidate of rank 1", [&] { return fs::exists(journal) || ranks.rank(1).has_ended(); }));
  ranks.rank(1).kill(SIGTERM);
  expect_all_ended_with(ranks.wait(), 3);
  EXPECT_FALSE(fs::exists(system / "one-stopped/scores.json"));
  expect_all_ended_with(draw_on_ranks(system, 2, "one-stopped", kManyCandidates), 0);
}

TEST(SamplingOnRanks, RanksThatWouldDrawSomethingElseAreRefused) {
  const auto& system = TinySystem::instance();
  for (const auto& [flag, values] : {std::pair{"--seed", std::pair{"3", "4"}}, {"--caption", {"sun", "moon"}}}) {
    const auto outcomes = RankProcesses(2, "sample-and-rerank", [&](int rank) {
                            auto arguments = sample_arguments(system, "differ", kFewCandidates);
                            arguments.insert(arguments.end(), {flag, rank == 0 ? values.first : values.second});
                            return arguments;
                          }).wait();
    expect_all_ended_with(outcomes, 2);
    EXPECT_THAT(outcomes[0].err, AllOf(HasSubstr("rank 1: expected "), HasSubstr("start every rank with the same")))
        << flag;
    EXPECT_FALSE(fs::exists(system / "differ")) << flag;
  }
}

TEST(Sampling, BadInputIsNamedAndLeavesNothing) {
  const auto& system = TinySystem::instance();
  struct Case {
    const char* name;
    std::vector<std::string> arguments;
    int exit_code;
    std::string message;
  };
  const std::string nuls = system.file("nuls.txt", std::string("fine\nb\0d\n", 9));
  const std::string text = system.file("text.png", "this is no picture");
  const Case cases[] = {
      {"empty caption", {"--caption", ""}, 2, "--caption: expected a text, got an empty one"},
      {"nothing to see", {"--caption", "\u200B"}, 2, "--caption: expected a text, got an empty one"},
      {"10,000 characters", {"--caption", std::string(10'000, 'x')}, 2, "at most 4096 characters, got 10000"},
      {"NUL", {"--captions", nuls}, 2, "nuls.txt:2: expected UTF-8 text, got a NUL byte"},
      {"keep",
       {"--caption", "sun", "--candidates", "4", "--keep", "5"},
       2,
       "--keep: expected at most --candidates, 4, got 5"},
      {"prompt", {"--caption", "sun", "--image-prompt", text, "--prompt-rows", "2"}, 2, "text.png"},
      {"rows alone", {"--caption", "sun", "--prompt-rows", "2"}, 2, "--prompt-rows: expected --image-prompt FILE"},
      {"endless", {"--captions", "/dev/zero"}, 2, "--captions /dev/zero: expected a file, got a device"},
      {"endless prompt", {"--caption", "sun", "--image-prompt", "/dev/zero"}, 2, "got a device"},
      {"rows", {"--caption", "sun", "--image-prompt", text, "--prompt-rows", "4"}, 2, "--prompt-rows"},
      {"clip", {"--caption", "sun", "--clip", system.at("dvae")}, 2, "clip"}};
  for (const Case& c : cases) {
    auto arguments = sample_arguments(system, "bad", {});
    for (size_t i = 0; i + 1 < c.arguments.size(); i += 2) {
      const auto found = std::find(arguments.begin(), arguments.end(), c.arguments[i]);
      if (found != arguments.end()) arguments.erase(found, found + 2);
    }
    arguments.insert(arguments.end(), c.arguments.begin(), c.arguments.end());
    const auto outcome = run("sample-and-rerank", arguments);
    EXPECT_NE(outcome.exit_code, 0) << c.name;
    EXPECT_EQ(outcome.exit_code, c.exit_code) << c.name << outcome.err;
    EXPECT_THAT(outcome.err, HasSubstr(c.message)) << c.name;
    EXPECT_FALSE(fs::exists(system / "bad")) << c.name;
  }
}

TEST(Sampling, CaptionsAreNoFolder) {
  const auto& system = TinySystem::instance();
  const auto folder = run("sample-and-rerank", sample_arguments(system, "no-file", {"--captions", system.at("clip")}));
  EXPECT_EQ(folder.exit_code, 2);
  EXPECT_THAT(folder.err,
              AllOf(HasSubstr("--captions " + system.at("clip")), HasSubstr("expected a file, got a folder")));
  EXPECT_FALSE(fs::exists(system / "no-file"));
}

TEST(Sampling, ALongCaptionIsCutWithAWarning) {
  const auto& system = TinySystem::instance();
  const auto outcome =
      run("sample-and-rerank",
          sample_arguments(system, "long", {"--caption", std::string(4000, 'x'), "--candidates", "3"}));
  EXPECT_EQ(outcome.exit_code, 0) << outcome.err;
  EXPECT_THAT(outcome.err, AllOf(HasSubstr("longer than"), Not(HasSubstr(std::string(200, 'x')))));
  EXPECT_EQ(json_of(system / "long/scores.json")["captions"][0]["candidates"].size(), 3U)
      << "all are kept of fewer than 32";
}

TEST(Sampling, SaysWhereItCannotWrite) {
  const auto& system = TinySystem::instance();
  system.file("a-file", "");
  const auto outcome = run("sample-and-rerank", sample_arguments(system, "a-file/below", {"--caption", "sun"}));
  EXPECT_EQ(outcome.exit_code, 1) << outcome.err;
  EXPECT_THAT(outcome.err, AllOf(HasSubstr("a-file/below"), HasSubstr("a folder that can be made and written")));
  // A disk that takes no more than the first pictures.
  const auto full =
      run("sample-and-rerank", sample_arguments(system, "full", kManyCandidates), {.max_file_bytes = 600});
  EXPECT_EQ(full.exit_code, 1) << full.err;
  EXPECT_THAT(full.err, AllOf(HasSubstr(system.at("full")), HasSubstr("cannot write")));
  EXPECT_TRUE(fs::exists(system / "full/unfinished.json"));
  EXPECT_FALSE(fs::exists(system / "full/scores.json"));
  const auto resumed = run("sample-and-rerank", sample_arguments(system, "full", kManyCandidates));
  EXPECT_EQ(resumed.exit_code, 0) << resumed.err;
}

}  // namespace
}  // namespace dalle::integration

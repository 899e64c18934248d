#include "dalle/generation/scores_json.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "dalle/core/files.h"
#include "support/temp_directory.h"

namespace dalle::generation {
namespace {

using Json = nlohmann::ordered_json;

ScoresReport small_report() {
  ScoresReport report;
  report.command = "sample-and-rerank";
  report.created = "2025-01-02T03:04:05Z";
  report.seed = 18446744073709551615u;
  report.score_name = "clip";
  report.settings = {{"temperature", 0.7}, {"top-k", int64_t{0}}, {"save-tokens", false}, {"rerank", "clip"}};
  report.models = {{"prior", "runs/p", "aa", 100}, {"dvae", "d.safetensors", "bb"}};
  report.times_seconds = {{"load", 0.5}, {"sample", 12.25}};
  CaptionScores caption{"a \"cat\"\n\u00e9", {}, "sheet.png"};
  caption.candidates = {{2, 0, 1.0 / 3, false, "0.png", {}}, {1, 1, 31.5, true, "1.png", {{"log_likelihood", -12.5}}}};
  report.captions = {caption};
  return report;
}

std::vector<std::string> keys(const Json& object) {
  std::vector<std::string> names;
  for (const auto& item : object.items()) names.push_back(item.key());
  return names;
}

TEST(ScoresJson, ValuesSurviveExactly) {
  const Json root = Json::parse(scores_json(small_report()));
  EXPECT_EQ(root["seed"].get<uint64_t>(), 18446744073709551615u);
  EXPECT_EQ(root["settings"]["temperature"].get<double>(), 0.7);
  EXPECT_TRUE(root["settings"]["top-k"].is_number_integer());
  EXPECT_TRUE(root["settings"]["save-tokens"].is_boolean());
  EXPECT_EQ(root["settings"]["rerank"], "clip");
  EXPECT_EQ(root["times_seconds"]["sample"], 12.25);
  EXPECT_EQ(root["captions"][0]["caption"], "a \"cat\"\n\u00e9");
  EXPECT_EQ(root["captions"][0]["candidates"][1]["score"].get<double>(), 1.0 / 3);
}

TEST(ScoresJson, KeysKeepTheDocumentedOrder) {
  const Json root = Json::parse(scores_json(small_report()));
  EXPECT_EQ(keys(root), (std::vector<std::string>{"format", "version", "command", "created", "seed", "score",
                                                  "settings", "models", "times_seconds", "captions"}));
  EXPECT_EQ(keys(root["settings"]), (std::vector<std::string>{"temperature", "top-k", "save-tokens", "rerank"}));
  EXPECT_EQ(keys(root["captions"][0]["candidates"][0]),
            (std::vector<std::string>{"rank", "candidate", "score", "kept", "file", "log_likelihood"}));
  EXPECT_EQ(keys(root["models"][0]), (std::vector<std::string>{"role", "path", "identity", "step"}));
  EXPECT_FALSE(root["models"][1].contains("step"));
}

TEST(ScoresJson, CandidatesAreSortedByRank) {
  const Json root = Json::parse(scores_json(small_report()));
  EXPECT_EQ(root["captions"][0]["candidates"][0]["rank"], 1);
  EXPECT_EQ(root["captions"][0]["candidates"][0]["candidate"], 1);
  EXPECT_EQ(root["captions"][0]["candidates"][1]["rank"], 2);
}

TEST(ScoresJson, OddValuesStayValidJson) {
  ScoresReport report = small_report();
  report.captions[0].caption = "broken \xff byte";
  report.captions[0].candidates[0].score = std::nan("");
  report.captions[0].candidates[1].score = -std::numeric_limits<double>::infinity();
  const Json candidates = Json::parse(scores_json(report))["captions"][0]["candidates"];
  EXPECT_EQ(candidates[0]["score"], "-inf");
  EXPECT_EQ(candidates[1]["score"], "nan");
}

TEST(ScoresJson, SmallestReportHasAllKeys) {
  const Json root = Json::parse(scores_json({}));
  EXPECT_TRUE(root["settings"].is_object());
  EXPECT_TRUE(root["models"].is_array());
  EXPECT_TRUE(root["captions"].is_array());
}

TEST(ScoresJson, IsWrittenToItsFile) {
  const testing::TempDirectory directory("scores");
  write_scores(directory.path(), small_report());
  EXPECT_EQ(read_file(directory / "scores.json"), scores_json(small_report()));
}

TEST(ScoresJson, TimeIsIso8601) {
  const std::string time = utc_time();
  ASSERT_EQ(time.size(), 20u);
  EXPECT_EQ(time[10], 'T');
  EXPECT_EQ(time[19], 'Z');
}

}  // namespace
}  // namespace dalle::generation

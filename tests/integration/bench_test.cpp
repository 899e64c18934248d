// dalle-bench runs and prints what its readers parse. What it measures is not tested.
#include "integration/tiny_pipeline.h"

namespace dalle::integration {
namespace {

using ::testing::HasSubstr;

TEST(Bench, PrintsALineForEachImplementation) {
  const auto outcome = run("dalle-bench", {"sample", "--config", "small_64+16x16_b1", "--precision", "f32", "bf16",
                                           "--rounds", "1", "--warmup", "0", "--threads", "1", "--device", "cpu"});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  std::istringstream lines(outcome.out);
  std::vector<nlohmann::json> parsed;
  for (std::string line; std::getline(lines, line);) parsed.push_back(nlohmann::json::parse(line));
  ASSERT_EQ(parsed.size(), 3U);  // int8 weights beside the two
  EXPECT_EQ(parsed[2]["impl"], "ours_int8");
  for (const auto& line : parsed) {
    EXPECT_EQ(line["job"], "sample");
    EXPECT_EQ(line["config"], "small_64+16x16_b1");
    EXPECT_EQ(line["unit"], "tokens/s");
    EXPECT_GT(line["median"].get<double>(), 0);
    EXPECT_GE(line["best"].get<double>(), line["median"].get<double>());
    EXPECT_GT(line["clean"].get<double>(), 0);
    EXPECT_EQ(line["n"], 1);
    EXPECT_EQ(line["items_per_call"], 256);
    EXPECT_NEAR(line["sec_per_call"].get<double>() * line["median"].get<double>(), 256, 1e-3);
    EXPECT_GT(line["cpu_share"].get<double>(), 0);
    EXPECT_LE(line["cpu_share"].get<double>(), 1.05);
    EXPECT_GE(line["spread"].get<double>(), 0);
    EXPECT_GT(line["share_of_limit"].get<double>(), 0);
    EXPECT_GT(line["last_to_first_row"].get<double>(), 0);
  }
  EXPECT_FALSE(parsed[0].contains("ratio_to_ref"));
  EXPECT_EQ(parsed[1]["ref"], parsed[0]["impl"]);
  EXPECT_GT(parsed[1]["ratio_to_ref"].get<double>(), 0);
}

TEST(Bench, TokenizeStandsBesideSentencePiece) {
  const auto outcome = run("dalle-bench", {"tokenize", "--rounds", "3", "--warmup", "0"});
  ASSERT_EQ(outcome.exit_code, 0) << outcome.err;
  std::istringstream lines(outcome.out);
  std::vector<std::string> impls;
  for (std::string text; std::getline(lines, text);) {
    const auto line = nlohmann::json::parse(text);
    impls.push_back(line["impl"]);
    EXPECT_EQ(line["unit"], "captions/s");
    EXPECT_FALSE(line.contains("peak_to_ref")) << "no tensors, so no ratio of them";
    EXPECT_EQ(line.contains("ratio_to_ref"), impls.size() > 1);
  }
  EXPECT_THAT(impls, ::testing::ElementsAre("sentencepiece", "ours", "ours_dropout_0.1"));
}

TEST(Bench, NamesItsConfigs) {
  const auto outcome = run("dalle-bench", {"dvae-train", "--config", "unheard_of"});
  EXPECT_EQ(outcome.exit_code, 2);
  EXPECT_THAT(outcome.err, HasSubstr("openai_nhid64_64px_b16"));
  EXPECT_EQ(run("dalle-bench", {"coffee"}).exit_code, 2);
}

}  // namespace
}  // namespace dalle::integration

#include "dalle/training/metrics.h"

#include <c10/util/Exception.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <nlohmann/json.hpp>

#include "dalle/core/files.h"
#include "support/temp_directory.h"

namespace dalle::training {
namespace {

using Json = nlohmann::ordered_json;

std::vector<Json> parse_lines(const std::string& text) {
  std::vector<Json> lines;
  std::istringstream stream(text);
  for (std::string line; std::getline(stream, line);) lines.push_back(Json::parse(line));
  return lines;
}

TEST(Metrics, OneObjectALineInOrder) {
  const testing::TempDirectory scratch("metrics");
  MetricsWriter writer(scratch / "metrics.jsonl");
  writer.log(10, "train", {{"loss", 0.1}, {"lr", 3e-4}});
  writer.log(20, "validation", {{"loss", 1.0 / 3}});
  const auto lines = parse_lines(read_file(scratch / "metrics.jsonl"));
  ASSERT_EQ(lines.size(), 2u);
  std::vector<std::string> keys;
  for (const auto& item : lines[0].items()) keys.push_back(item.key());
  EXPECT_EQ(keys, (std::vector<std::string>{"step", "phase", "time", "loss", "lr"}));
  EXPECT_EQ(lines[0]["step"], 10);
  EXPECT_GT(lines[0]["time"].get<double>(), 1.6e9);
  EXPECT_EQ(lines[1]["phase"], "validation");
  EXPECT_EQ(lines[1]["loss"].get<double>(), 1.0 / 3) << "doubles survive exactly";
}

TEST(Metrics, ValuesThatAreNotFiniteStayValidJson) {
  const testing::TempDirectory scratch("metrics-nan");
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  MetricsWriter(scratch / "m.jsonl").log(1, "train", {{"a", std::nan("")}, {"b", kInfinity}, {"c", -kInfinity}});
  const Json line = parse_lines(read_file(scratch / "m.jsonl")).at(0);
  EXPECT_EQ(line["a"], "nan");
  EXPECT_EQ(line["b"], "inf");
  EXPECT_EQ(line["c"], "-inf");
}

TEST(Metrics, NamesMayNotClash) {
  const testing::TempDirectory scratch("metrics-clash");
  MetricsWriter writer(scratch / "m.jsonl");
  EXPECT_THROW(writer.log(1, "train", {{"step", 2}}), c10::ValueError);
  EXPECT_THROW(writer.log(1, "train", {{"loss", 2}, {"loss", 3}}), c10::ValueError);
  EXPECT_FALSE(std::filesystem::exists(scratch / "m.jsonl"));
}

TEST(Metrics, LaterAndUnfinishedLinesAreCut) {
  const testing::TempDirectory scratch("metrics-cut");
  const auto file = scratch / "m.jsonl";
  write_file(file, "{\"step\":1,\"loss\":2}\n{\"step\":5}\n{\"step\":2,\"x\":\"nan\"}\nnoise\n{\"step\":1,\"lo");
  cut_metrics_after(file, 2);
  EXPECT_EQ(read_file(file), "{\"step\":1,\"loss\":2}\n{\"step\":2,\"x\":\"nan\"}\n");
  cut_metrics_after(file, 0);
  EXPECT_EQ(read_file(file), "");
  EXPECT_NO_THROW(cut_metrics_after(scratch / "none.jsonl", 1));
}

TEST(Metrics, FilesWithoutLaterLinesAreNotTouched) {
  const testing::TempDirectory scratch("metrics-keep");
  const auto file = scratch / "m.jsonl";
  write_file(file, "{\"step\":1}\n");
  const auto before = std::filesystem::last_write_time(file);
  const auto old = before - std::chrono::hours(1);
  std::filesystem::last_write_time(file, old);
  cut_metrics_after(file, 1);
  EXPECT_EQ(std::filesystem::last_write_time(file), old);
}

TEST(Metrics, AverageIsWeighted) {
  Average average;
  EXPECT_TRUE(average.is_empty());
  EXPECT_TRUE(std::isnan(average.mean()));
  average.add(1, 3);
  average.add(5);
  EXPECT_DOUBLE_EQ(average.mean(), 2);
  average.reset();
  EXPECT_TRUE(average.is_empty());
}

TEST(Metrics, RecordsHaveTextsAndNumbers) {
  const testing::TempDirectory scratch("metrics-record");
  MetricsWriter writer(scratch / "m.jsonl");
  writer.record(7, "schedule", {{"event", "halved"}, {"cause", "plateau"}}, {{"before", 4}, {"learning_rate", 2}});
  const auto line = nlohmann::ordered_json::parse(read_file(scratch / "m.jsonl"));
  EXPECT_EQ(line["step"], 7);
  EXPECT_EQ(line["phase"], "schedule");
  EXPECT_EQ(line["event"], "halved");
  EXPECT_EQ(line["cause"], "plateau");
  EXPECT_EQ(line["learning_rate"], 2);
}

TEST(Metrics, ThroughputCountsItemsAndWaiting) {
  Throughput throughput(100);
  throughput.begin_wait(100);
  throughput.end_wait(101);
  throughput.add_items(30);
  throughput.begin_wait(102);
  throughput.end_wait(102.5);
  throughput.begin_prepare(103);
  throughput.end_prepare(103.6);
  throughput.add_items(30);
  TimeSpent spent = throughput.spent(106);
  EXPECT_DOUBLE_EQ(spent.items_per_second(), 10);
  EXPECT_DOUBLE_EQ(spent.wait_share(), 0.25);
  EXPECT_NEAR(spent.prepare_share(), 0.1, 1e-12);
  throughput.reset(106);
  EXPECT_EQ(throughput.spent(106).items_per_second(), 0);
  EXPECT_EQ(throughput.spent(107).wait_share(), 0);
  EXPECT_EQ(throughput.spent(107).prepare_share(), 0);
  spent += throughput.spent(112);  // six seconds without items
  EXPECT_DOUBLE_EQ(spent.items_per_second(), 5);
  EXPECT_DOUBLE_EQ(spent.wait_share(), 0.125);
}

}  // namespace
}  // namespace dalle::training

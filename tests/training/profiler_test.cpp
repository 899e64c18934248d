#include "dalle/training/profiler.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>

#include <map>

#include "training/tiny_runs.h"

namespace dalle::training {
namespace {

/// How often each operator is in a trace, which must be valid JSON.
std::map<std::string, int64_t> operators_in(const fs::path& trace) {
  std::map<std::string, int64_t> counts;
  const auto json = nlohmann::json::parse(read_file(trace));
  for (const auto& event : json.at("traceEvents")) ++counts[event.value("name", "")];
  return counts;
}

TEST(Profiler, RecordsTheStepsAskedFor) {
  const testing::TempDirectory scratch("profiler");
  set_console_level(LogLevel::kError);
  {
    Profiler profiler(2, 2, scratch / "trace.json");
    for (int64_t step = 0; step < 6; ++step) {
      profiler.before_step(step);
      const Tensor x = at::ones({3, 3});
      if (step == 2 || step == 3)
        at::mm(x, x);
      else
        at::cumsum(x, 0);
      profiler.after_step(step + 1);
      EXPECT_EQ(fs::exists(scratch / "trace.json"), step >= 3) << step;
    }
  }
  const auto counts = operators_in(scratch / "trace.json");
  EXPECT_EQ(counts.at("aten::mm"), 2);
  EXPECT_FALSE(counts.contains("aten::cumsum"));
}

TEST(Profiler, ATraceThatIsCutShortIsWrittenAtTheEnd) {
  const testing::TempDirectory scratch("profiler-short");
  {
    Profiler profiler(0, 100, scratch / "trace.json");
    profiler.before_step(0);
    at::mm(at::ones({3, 3}), at::ones({3, 3}));
    profiler.after_step(1);
  }
  EXPECT_EQ(operators_in(scratch / "trace.json").at("aten::mm"), 1);
}

TEST(Profiler, RecordsNothingUnlessAsked) {
  const testing::TempDirectory scratch("profiler-off");
  {
    Profiler profiler(-1, 5, scratch / "trace.json");
    profiler.before_step(0);
    profiler.after_step(1);
  }
  EXPECT_FALSE(fs::exists(scratch / "trace.json"));
}

TEST(Profiler, ATrainingRunLeavesItsTrace) {
  const testing::TempDirectory scratch("profiler-run");
  auto config = tiny_dvae(4);
  config.trainer.profile_from_step = 1;
  config.trainer.profile_num_steps = 2;
  ASSERT_TRUE(train(config, scratch / "run"));
  const auto counts = operators_in(scratch / "run/profile.json");
  EXPECT_GE(counts.at("aten::convolution_backward"), 2 * 20) << "two steps through all convolutions";
}

TEST(Profiler, TimesOperatorsWithoutThoseTheyCall) {
  const at::Tensor a = at::ones({200, 200});
  const auto times = profile([&] {
    for (int i = 0; i < 3; ++i) at::linear(a, a);
  });
  const auto find = [&](const std::string& name) {
    return *std::find_if(times.begin(), times.end(), [&](const OperatorTime& time) { return time.name == name; });
  };
  ASSERT_EQ(find("aten::linear").calls, 3);
  ASSERT_EQ(find("aten::mm").calls, 3);
  EXPECT_GT(find("aten::mm").milliseconds, find("aten::linear").milliseconds) << "linear only calls mm";
  EXPECT_GE(find("aten::linear").milliseconds, 0);
  const std::string table = describe_profile(times, 3, "title");
  EXPECT_THAT(table, ::testing::StartsWith("title: "));
  EXPECT_THAT(table, ::testing::HasSubstr("1.0  aten::mm\n"));
}

}  // namespace
}  // namespace dalle::training

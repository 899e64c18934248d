#include "dalle/training/profiler.h"

#include <gtest/gtest.h>

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
  EXPECT_GE(counts.at("aten::convolution"), 2 * 20) << "two steps through all convolutions";
  EXPECT_GE(counts.at("aten::convolution_backward"), 2 * 20);
}

}  // namespace
}  // namespace dalle::training

// Ranks that have drifted apart are noticed before anything is saved.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include "support/rank_processes.h"
#include "training/tiny_runs.h"

namespace dalle::training {
namespace {

using ::testing::HasSubstr;

/// Rank 1's weights are moved in the middle of the second step.
TEST(StateAgreementWorker, DISABLED_Drifts) {
  set_console_level(LogLevel::kError);
  const auto group = distributed::init(testing::rank_device(), std::chrono::seconds(60));
  const testing::TempDirectory scratch(str("drift-", group->rank()));
  auto config = tiny_dvae(4);
  DvaeTask task(config, testing::rank_device());
  WatchedTask watched(task);
  watched.before_step = [&](int64_t step) {
    if (step != 1 || group->rank() != 1) return;
    task.module().named_parameters().back().parameter->tensor.detach().add_(1e-3);
  };
  Trainer trainer(setup_of(config), watched, *group);
  RunDirectory run = RunDirectory::create(scratch / "run", "");
  const std::string message = message_of<Error>([&] { trainer.run(run); });
  EXPECT_THAT(message, HasSubstr("rank 1: expected weights"));
  EXPECT_TRUE(storage::list_checkpoints(scratch / "run").empty());
}

TEST(StateAgreement, WeightsThatDifferAreNotSaved) { testing::run_ranks(2, "StateAgreementWorker.DISABLED_Drifts"); }

}  // namespace
}  // namespace dalle::training

#include "dalle/training/same_run.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dalle/core/error.h"
#include "dalle/core/str.h"
#include "support/rank_processes.h"
#include "support/thrown_message.h"

namespace dalle::training {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::message_of;

TEST(SameRunWorker, DISABLED_Differences) {
  const auto group = distributed::init(testing::rank_device(), std::chrono::seconds(60));
  const std::string config = "trainer:\n  seed: 3\n", plan = "8 samples, captions 12ab";
  require_same_run(*group, config, plan, plan);
  const bool is_odd = group->rank() == 1;
  const auto of_config =
      message_of<ConfigError>([&] { require_same_run(*group, is_odd ? "trainer:\n  seed: 4\n" : config, plan, ""); });
  EXPECT_THAT(of_config, AllOf(HasSubstr("rank 1: expected trainer.seed '3'"), HasSubstr("got '4'")));
  const std::string other = is_odd ? "9 samples, captions 12ab" : plan;
  const auto of_data = message_of<ConfigError>([&] { require_same_run(*group, config, other, plan); });
  EXPECT_THAT(of_data, AllOf(HasSubstr("rank 1: expected training data 8 samples"), HasSubstr("got 9 samples"),
                             HasSubstr("same data set")));
  const auto of_validation = message_of<ConfigError>([&] { require_same_run(*group, config, plan, other); });
  EXPECT_THAT(of_validation, HasSubstr("rank 1: expected validation data 8 samples"));
}

TEST(SameRun, DifferencesAreNamedOnEveryRank) { testing::run_ranks(2, "SameRunWorker.DISABLED_Differences"); }

TEST(SameRun, OneProcessIsAlwaysTheSame) { require_same_run(*distributed::make_singleton(), "a: 1\n", "", ""); }

}  // namespace
}  // namespace dalle::training

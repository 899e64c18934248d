#include "dalle/distributed/join.h"

#include <ATen/Parallel.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <csignal>

#include "dalle/core/device.h"
#include "dalle/core/error.h"
#include "support/rank_processes.h"
#include "support/thrown_message.h"

namespace dalle::distributed {
namespace {

using ::testing::HasSubstr;
using testing::message_of;

JoinOptions options(const std::string& device, int threads = 0) {
  return {.device = device, .threads = threads, .end = [](const std::string& message) { ADD_FAILURE() << message; }};
}

TEST(Join, WithoutALauncherAProcessIsAlone) {
  const Ranks ranks = join_ranks(options("cpu", 2));
  EXPECT_TRUE(ranks.is_first());
  EXPECT_EQ(ranks.communicator->world_size(), 1);
  EXPECT_EQ(ranks.on_this_machine, 1);
  EXPECT_TRUE(ranks.device.is_cpu());
  EXPECT_EQ(at::get_num_threads(), 2);
  EXPECT_EQ(run_as_rank(*ranks.communicator, [] { return 3; }), 3);
  EXPECT_EQ(message_of<DataError>([&] { run_as_rank(*ranks.communicator, []() -> int { throw DataError("bad"); }); }),
            "bad");
  EXPECT_THAT(message_of<ConfigError>([] { join_ranks(options("gpu")); }), HasSubstr("--device"));
}

TEST(JoinWorker, DISABLED_Joins) {
  const Ranks ranks = join_ranks(options("auto", 1));
  EXPECT_EQ(ranks.communicator->world_size(), 2);
  EXPECT_EQ(ranks.is_first(), ranks.communicator->rank() == 0);
  EXPECT_EQ(ranks.device, testing::rank_device());
  ::raise(SIGPIPE);  // of a connection whose other end is gone: no end of this process
  EXPECT_EQ(ranks.on_this_machine, 2);
  EXPECT_EQ(run_as_rank(*ranks.communicator,
                        [&] {
                          ranks.communicator->barrier();
                          return 5;
                        }),
            5);
}

TEST(Join, RanksMeetOnTheirDevices) { testing::run_ranks(2, "JoinWorker.DISABLED_Joins"); }

}  // namespace
}  // namespace dalle::distributed

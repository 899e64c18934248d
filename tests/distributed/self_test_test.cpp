#include "dalle/distributed/self_test.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dalle/core/error.h"
#include "support/rank_processes.h"

namespace dalle::distributed {
namespace {

using ::testing::HasSubstr;

TEST(SelfTestWorker, DISABLED_Lines) {
  const auto group = init(testing::rank_device(), std::chrono::seconds(60));
  const auto lines = self_test(*group, testing::rank_device());
  ASSERT_EQ(lines.size(), 3U);
  EXPECT_THAT(lines[0], HasSubstr("all-reduce of 4.0 MiB over "));
  EXPECT_THAT(lines[1], HasSubstr("all-gather of 4.0 MiB over "));
  EXPECT_THAT(lines[2], HasSubstr("reduce-scatter of 4.0 MiB over "));
}

TEST(SelfTest, TimesEachCollective) {
  testing::run_ranks(2, "SelfTestWorker.DISABLED_Lines");
  testing::run_ranks(3, "SelfTestWorker.DISABLED_Lines");
}

TEST(SelfTest, OneProcessHasNothingToTest) { EXPECT_TRUE(self_test(*make_singleton(), at::kCPU).empty()); }

/// Two ranks of which only this one exists: what it sends comes back as it was.
class Deaf : public Communicator {
 public:
  int rank() const override { return 0; }
  int world_size() const override { return 2; }
  void all_reduce_sum(Tensor&) override {}
  void broadcast(Tensor&, int) override {}
  Tensor all_gather(const Tensor& tensor) override { return at::cat({tensor, tensor}); }
  void barrier() override {}
  void await(int) override {}
};

TEST(SelfTest, WrongResultsAreNoticed) {
  Deaf deaf;
  EXPECT_THROW(self_test(deaf, at::kCPU), Error);
}

}  // namespace
}  // namespace dalle::distributed

// Factors of several groups under way at once.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <numeric>

#include "dalle/distributed/powersgd.h"
#include "support/late_rank.h"
#include "support/random_tensor.h"
#include "support/tensor_matchers.h"
#include "support/thread_ranks.h"

namespace dalle::distributed {
namespace {

using testing::bitwise_equal;
using testing::LateRank;
using testing::run_thread_ranks;
using testing::ThreadRank;

const std::vector<CompressedMatrix> kBlocks{{"a", 12, 40}, {"b", 48, 8}, {"c", 16, 16}, {"d", 9, 30}};
const std::vector<std::vector<size_t>> kGroups{{3}, {1, 2}, {}, {0}};

/// The gradients of a step, block by block: P of one is under way with Q of the one before.
std::vector<Tensor> overlapped(PowerSgd& powersgd, const std::vector<Tensor>& gradients, Communicator& ranks) {
  std::vector<PowerSgd::Round> rounds;
  for (const auto& group : kGroups) {
    for (const size_t i : group) powersgd.add(i, gradients[i]);
    rounds.push_back(powersgd.start_p(group, ranks));
    if (rounds.size() > 1) powersgd.start_q(rounds[rounds.size() - 2]);
  }
  powersgd.start_q(rounds.back());
  for (auto& round : rounds) powersgd.finish(round);
  std::vector<Tensor> others, sums;
  powersgd.reduce_rest(others, ranks);
  for (size_t i = 0; i < kBlocks.size(); ++i) sums.push_back(powersgd.decompress(i));
  return sums;
}

TEST(PowerSgdRounds, ThatOverlapGiveWhatOneAfterTheOtherDoes) {
  for (const ErrorFormat format : {ErrorFormat::kF32, ErrorFormat::kF16}) {
    run_thread_ranks(3, [format](ThreadRank& ranks) {
      const PowerSgdConfig config{
          .rank = 3, .error_buffers = format, .factors = format, .p_divisor = 2, .q_divisor = 3};
      PowerSgd plain(kBlocks, config, 5, at::kFloat), beside(kBlocks, config, 5, at::kFloat);
      LateRank late(ranks);
      for (int step = 0; step < 4; ++step) {
        std::vector<Tensor> gradients, others;
        for (const auto& block : kBlocks) {
          const auto seed = stable_hash(block.name) + static_cast<uint64_t>(10 * step + ranks.rank());
          gradients.push_back(testing::random_tensor(seed, {block.rows, block.cols}) * 1e-2);
        }
        if (step == 2 && ranks.rank() == 1) gradients[2][0][0] = INFINITY;
        Tensor norm;
        const auto expected = plain.reduce(gradients, others, ranks, norm);
        EXPECT_EQ(std::isinf(norm.item<double>()), step == 2);
        const auto actual = overlapped(beside, gradients, late);
        for (size_t i = 0; i < kBlocks.size(); ++i) {
          EXPECT_TRUE(bitwise_equal(actual[i], expected[i])) << kBlocks[i].name << ", step " << step;
          EXPECT_TRUE(bitwise_equal(beside.error(i), plain.error(i))) << kBlocks[i].name << ", step " << step;
        }
      }
      EXPECT_EQ(late.num_begun, 4 * 2 * 3) << "P and Q of the groups that are not empty";
    });
  }
}

}  // namespace
}  // namespace dalle::distributed

// The default block runner only calls.
#include "dalle/layers/block_runner.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace dalle::layers {
namespace {

TEST(BlockRunner, PlainRunnerCallsTheFunctionOnceWithTheInput) {
  const Tensor x = at::arange(3, at::kFloat);
  int calls = 0;
  const Tensor y = plain_runner().run(4, x, [&](const Tensor& input) {
    ++calls;
    EXPECT_TRUE(input.is_same(x));
    return input + 1;
  });
  EXPECT_EQ(calls, 1);
  EXPECT_TRUE(at::equal(y, x + 1));
}

}  // namespace
}  // namespace dalle::layers

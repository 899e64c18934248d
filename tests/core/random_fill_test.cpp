// Stretches of a stream against its whole row.
#include "dalle/core/random_fill.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "support/tensor_matchers.h"

namespace dalle {
namespace {

TEST(RandomFill, StretchesOfARowEqualTheWholeBitForBit) {
  const RandomKey key = random_key(5, Purpose::kSampling, 1, 2);
  const Tensor gumbel = gumbel_rows({&key, 1}, 500, at::kCPU, 3)[0],
               uniform = uniform_rows({&key, 1}, 500, at::kCPU, 3)[0];
  for (const auto& [first, size] : {std::pair{0, 500}, {61, 64}, {7, 1}, {125, 200}}) {
    const Tensor out = at::empty({2, size}, at::kFloat);
    fill_gumbel(key, 3 + first, size, out[0].mutable_data_ptr<float>());
    fill_uniform(key, 3 + first, size, out[1].mutable_data_ptr<float>());
    EXPECT_TRUE(testing::bitwise_equal(out[0], gumbel.slice(0, first, first + size)));
    EXPECT_TRUE(testing::bitwise_equal(out[1], uniform.slice(0, first, first + size)));
  }
}

}  // namespace
}  // namespace dalle

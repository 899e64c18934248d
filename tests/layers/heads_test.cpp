// The heads' views and the gradient put together from theirs, with and without a copy.
#include "dalle/layers/heads.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "support/random_tensor.h"
#include "support/tensor_matchers.h"

namespace dalle::layers {
namespace {

using testing::bitwise_equal;
using testing::random_tensor;

constexpr int64_t kBatch = 2, kLength = 5, kHeads = 3, kSize = 4;

Heads random_gradients() {
  const auto part = [](uint64_t seed) { return random_tensor(seed, {kBatch, kHeads, kLength, kSize}); };
  return {part(2), part(3), part(4)};
}

Tensor gradient_of(const Heads& gradients) {
  const Tensor qkv = random_tensor(1, {kBatch, kLength, 3 * kHeads * kSize}).requires_grad_();
  const Heads heads = split_heads(qkv, kHeads);
  torch::autograd::backward({heads.q_BHLK, heads.k_BHLK, heads.v_BHLK},
                            {gradients.q_BHLK, gradients.k_BHLK, gradients.v_BHLK});
  return qkv.grad();
}

TEST(Heads, AreViewsOfTheProjection) {
  const Tensor qkv = random_tensor(1, {kBatch, kLength, 3 * kHeads * kSize});
  const Heads heads = split_heads(qkv, kHeads);
  EXPECT_TRUE(heads.v_BHLK.is_alias_of(qkv));
  for (const auto& [part, index] : {std::pair{heads.q_BHLK, 0}, {heads.k_BHLK, 1}, {heads.v_BHLK, 2}}) {
    for (int64_t head = 0; head < kHeads; ++head) {
      const int64_t first = (index * kHeads + head) * kSize;
      EXPECT_TRUE(bitwise_equal(part.select(1, head), qkv.slice(2, first, first + kSize)));
    }
  }
}

TEST(Heads, GradientIsTheSameWithAndWithoutACopy) {
  const Heads apart = random_gradients();
  const Tensor expected =
      at::cat({apart.q_BHLK, apart.k_BHLK, apart.v_BHLK}, 1).transpose(1, 2).reshape({kBatch, kLength, -1});
  EXPECT_TRUE(bitwise_equal(gradient_of(apart), expected));
  const Heads together = empty_heads(apart.q_BHLK);
  together.q_BHLK.copy_(apart.q_BHLK);
  together.k_BHLK.copy_(apart.k_BHLK);
  together.v_BHLK.copy_(apart.v_BHLK);
  EXPECT_TRUE(bitwise_equal(gradient_of(together), expected));
  EXPECT_TRUE(gradient_of(together).is_alias_of(together.q_BHLK));
  // Side by side, but not in this order.
  EXPECT_TRUE(bitwise_equal(gradient_of({together.k_BHLK, together.q_BHLK, together.v_BHLK}),
                            gradient_of({apart.k_BHLK, apart.q_BHLK, apart.v_BHLK})));
}

TEST(Heads, OnePartAloneHasAGradient) {
  const Tensor qkv = random_tensor(1, {1, 2, 12}).requires_grad_();
  split_heads(qkv, 2).v_BHLK.sum().backward();
  EXPECT_TRUE(bitwise_equal(qkv.grad(), at::cat({at::zeros({1, 2, 8}), at::ones({1, 2, 4})}, 2)));
}

TEST(Heads, AnotherSizeIsAnError) { EXPECT_THROW(split_heads(at::ones({1, 2, 13}), 2), c10::ValueError); }

}  // namespace
}  // namespace dalle::layers

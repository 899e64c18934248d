// Own elementwise passes against ATen's.
#include "dalle/layers/elementwise.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "support/random_tensor.h"
#include "support/tensor_matchers.h"

namespace dalle::layers {
namespace {

TEST(Elementwise, MaskAndAddIsTheGradientOfAReluJoinedWithAnotherPath) {
  for (const auto type : {at::kFloat, at::kBFloat16, at::kDouble}) {
    for (const int64_t width : {1, 7, 33, 300}) {
      const auto tensor = [&](uint64_t seed) {
        return testing::random_tensor(seed, {3, 5, 11, width}).to(type).contiguous(at::MemoryFormat::ChannelsLast);
      };
      const Tensor relu_output = at::relu(tensor(1)), other = tensor(2), before = tensor(3);
      Tensor grad = before.clone();
      mask_and_add_(grad, relu_output, other);
      const Tensor expected = at::where(relu_output > 0, before, at::zeros_like(before)) + other;
      EXPECT_TRUE(testing::bitwise_equal(grad, expected)) << type << " " << width;
    }
  }
}

TEST(Elementwise, MaskAndAddTakesTensorsOfDifferentLayouts) {
  const Tensor relu_output = at::relu(testing::random_tensor(1, {2, 3, 4, 5}));
  const Tensor other = testing::random_tensor(2, {2, 3, 4, 5}).contiguous(at::MemoryFormat::ChannelsLast);
  Tensor grad = testing::random_tensor(3, {2, 3, 4, 5});
  const Tensor expected = at::where(relu_output > 0, grad, at::zeros_like(grad)) + other;
  mask_and_add_(grad, relu_output, other);
  EXPECT_TRUE(at::equal(grad, expected));
}

}  // namespace
}  // namespace dalle::layers

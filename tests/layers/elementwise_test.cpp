// Own elementwise passes against ATen's, bit by bit.
#include "dalle/layers/elementwise.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <limits>

#include "support/random_tensor.h"
#include "support/tensor_matchers.h"

namespace dalle::layers {
namespace {

using testing::bitwise_equal;

Tensor picture(uint64_t seed, at::IntArrayRef sizes, at::ScalarType type,
               at::MemoryFormat format = at::MemoryFormat::ChannelsLast) {
  return testing::random_tensor(seed, sizes).to(type).contiguous(format);
}

constexpr std::pair<at::ScalarType, at::ScalarType> kTypes[] = {{at::kBFloat16, at::kBFloat16},
                                                                {at::kFloat, at::kBFloat16},
                                                                {at::kFloat, at::kFloat},
                                                                {at::kDouble, at::kDouble},
                                                                {at::kDouble, at::kFloat}};

TEST(Elementwise, ReluTo) {
  for (const auto& [from, to] : kTypes) {
    Tensor x = picture(1, {2, 7, 5, 3}, from);
    x[0][0][0][0] = std::numeric_limits<double>::quiet_NaN();
    x[0][1][0][0] = std::numeric_limits<double>::infinity();
    const Tensor out = relu_to(x, to);
    EXPECT_EQ(out.scalar_type(), to);
    EXPECT_TRUE(at::isnan(out[0][0][0][0]).item<bool>());
    EXPECT_TRUE(bitwise_equal(at::nan_to_num(out), at::nan_to_num(at::relu(x).to(to)))) << from << to;
  }
}

TEST(Elementwise, ResidualSum) {
  for (const auto& [id_type, branch_type] : kTypes) {
    for (const bool enlarges : {false, true}) {
      for (const int64_t channels : {1, 7, 64}) {
        const int64_t size = enlarges ? 3 : 6;
        const Tensor id = picture(1, {2, channels, size, size}, id_type);
        const Tensor branch = picture(2, {2, channels, 6, 6}, branch_type);
        const Tensor whole = enlarges ? at::upsample_nearest2d(id, {6, 6}) : id;
        // One rounding at the end; 1/4 times a number rounds nothing.
        const auto wide = id_type == at::kDouble ? at::kDouble : at::kFloat;
        const Tensor expected = (whole.to(wide) + branch.to(wide) * 0.25).to(id_type);
        EXPECT_TRUE(bitwise_equal(residual_sum(id, branch, 0.25, enlarges), expected)) << id_type << branch_type;
      }
    }
  }
}

TEST(Elementwise, MaskAndAddIsTheGradientOfAReluJoinedWithAnotherPath) {
  for (const auto& [other_type, grad_type] : kTypes) {
    for (const int64_t width : {1, 7, 33, 300}) {
      const at::IntArrayRef sizes{3, 5, 11, width};
      const Tensor relu_output = at::relu(picture(1, {3, 5, 11, width}, grad_type));
      const Tensor other = picture(2, {3, 5, 11, width}, other_type), grad = picture(3, {3, 5, 11, width}, grad_type);
      const Tensor masked = at::where(relu_output > 0, grad, at::zeros_like(grad));
      const Tensor expected = (masked.to(other_type) + other);
      const Tensor out = mask_and_add(grad.clone(), relu_output, other);
      EXPECT_EQ(out.scalar_type(), other_type);
      EXPECT_TRUE(bitwise_equal(out, expected)) << other_type << grad_type << " " << width;
    }
  }
}

TEST(Elementwise, TensorsOfDifferentLayoutsGoTogether) {
  const auto plain = at::MemoryFormat::Contiguous;
  const Tensor relu_output = at::relu(picture(1, {2, 3, 4, 6}, at::kFloat, plain));
  const Tensor other = picture(2, {2, 3, 4, 6}, at::kFloat), grad = picture(3, {2, 3, 4, 6}, at::kFloat, plain);
  EXPECT_TRUE(at::equal(mask_and_add(grad.clone(), relu_output, other),
                        at::where(relu_output > 0, grad, at::zeros_like(grad)) + other));
  EXPECT_TRUE(at::equal(residual_sum(other, grad, 0.5), other + grad * 0.5));
}

}  // namespace
}  // namespace dalle::layers

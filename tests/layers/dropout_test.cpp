// Dropout: its rate and scale, what its masks depend on, and its gradient.
#include "dalle/layers/dropout.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "support/tensor_matchers.h"

namespace dalle::layers {
namespace {

TEST(Dropout, DropsItsShareAndKeepsTheMean) {
  const Tensor x = at::ones({4, 100, 250});
  const Tensor out = Dropout{.rate = 0.25, .seed = 1, .positions = {0, 1, 2, 3}}.apply(x, 3);
  const double n = static_cast<double>(x.numel()), dropped = (out == 0).sum().item<double>() / n;
  EXPECT_NEAR(dropped, 0.25, 4 * std::sqrt(0.25 * 0.75 / n));
  EXPECT_TRUE(at::logical_or(out == 0, (out - 1 / 0.75).abs() < 1e-6).all().item<bool>());
}

TEST(Dropout, OffIsTheSameTensor) {
  const Tensor x = at::randn({2, 3});
  EXPECT_TRUE(Dropout{}.apply(x, 0).is_same(x));
}

TEST(Dropout, DependsOnSeedSampleAndPlaceAlone) {
  const Tensor x = at::ones({2, 4096});
  const Dropout both{.rate = 0.5, .seed = 5, .positions = {10, 11}};
  const Tensor out = both.apply(x, 1);
  EXPECT_TRUE(testing::bitwise_equal(both.apply(x, 1), out));
  EXPECT_TRUE(testing::bitwise_equal((Dropout{0.5, 5, {11, 10}}.apply(x, 1).flip(0)), out)) << "not on the order";
  const auto agreement = [&](const Tensor& other) { return (other == out).to(at::kFloat).mean().item<double>(); };
  for (const Tensor& other :
       {both.apply(x, 2), Dropout{0.5, 6, {10, 11}}.apply(x, 1), Dropout{0.5, 5, {11, 12}}.apply(x, 1), out.flip(0)}) {
    EXPECT_NEAR(agreement(other), 0.5, 0.05) << "another stream";
  }
}

TEST(Dropout, TheGradientPassesWhereTheValueDid) {
  const Dropout dropout{.rate = 0.4, .seed = 2, .positions = {0, 1}};
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    const Tensor x = at::rand({2, 50}).add(0.5).to(type).requires_grad_();
    const Tensor out = dropout.apply(x, 0);
    EXPECT_EQ(out.scalar_type(), type);
    out.sum().backward();
    EXPECT_TRUE(at::equal(x.grad() != 0, out != 0));
    EXPECT_NEAR(x.grad().max().item<double>(), 1 / 0.6, 1e-2);
  }
}

TEST(Dropout, WrongBatchesAreRefused) {
  EXPECT_THROW((Dropout{0.5, 1, {0}}.apply(at::ones({2, 3}), 0)), c10::ValueError);
  EXPECT_THROW((Dropout{1.0, 1, {0, 1}}.apply(at::ones({2, 3}), 0)), c10::ValueError);
}

}  // namespace
}  // namespace dalle::layers

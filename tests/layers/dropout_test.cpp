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

AttentionDropout weights_dropout(double rate, uint64_t seed, std::vector<int64_t> positions, int64_t layer) {
  return attention_dropout({.seed = seed, .positions = std::move(positions), .attention_rate = rate}, layer);
}

TEST(AttentionDropout, FactorsAreThePairWords) {
  const AttentionDropout dropout = weights_dropout(0.3, 4, {7, 9}, 2);
  const Tensor factors = dropout.factors(3, 5, at::kCPU);
  ASSERT_EQ(factors.sizes(), (std::vector<int64_t>{2, 3, 5, 5}));
  for (int64_t i = 0; i < factors.numel(); ++i) {
    const int64_t key = i % 5, query = i / 5 % 5, head = i / 25 % 3, sample = i / 75;
    const PairRow row = AttentionDropout::row(dropout.keys[static_cast<size_t>(sample)], head, query);
    const bool drops = static_cast<double>(pair_word(row, static_cast<uint32_t>(key))) < 0.3 * 4294967296.0;
    EXPECT_FLOAT_EQ(factors.view(-1)[i].item<float>(), drops ? 0.0F : static_cast<float>(1 / 0.7)) << i;
  }
}

TEST(AttentionDropout, DropsItsShareOfEveryRowAndColumn) {
  const Tensor factors = weights_dropout(0.25, 1, {0, 1}, 0).factors(4, 512, at::kCPU);
  const Tensor dropped = (factors == 0).to(at::kDouble);
  const auto expect_share = [&](const Tensor& shares, double count) {
    EXPECT_LT((shares - 0.25).abs().max().item<double>(), 5.5 * std::sqrt(0.25 * 0.75 / count));
  };
  expect_share(dropped.mean(), static_cast<double>(factors.numel()));
  expect_share(dropped.mean({0, 1, 2}), 2 * 4 * 512);
  expect_share(dropped.mean(3), 512);
  // Neighbours are dropped independently.
  const auto agree = [&](const Tensor& a, const Tensor& b) {
    EXPECT_NEAR((a * b).mean().item<double>(), 0.0625, 5 * std::sqrt(0.0625 * 0.9375 / static_cast<double>(a.numel())));
  };
  agree(dropped.slice(3, 1), dropped.slice(3, 0, -1));
  agree(dropped.slice(2, 1), dropped.slice(2, 0, -1));
  agree(dropped.slice(1, 1), dropped.slice(1, 0, -1));
  agree(dropped.slice(0, 1), dropped.slice(0, 0, -1));
}

TEST(AttentionDropout, DependsOnSeedSampleAndLayerAlone) {
  const auto of = [](uint64_t seed, int64_t position, int64_t layer) {
    return weights_dropout(0.5, seed, {position}, layer).factors(2, 64, at::kCPU);
  };
  const Tensor out = of(1, 2, 3);
  EXPECT_TRUE(testing::bitwise_equal(of(1, 2, 3), out));
  EXPECT_TRUE(testing::bitwise_equal(weights_dropout(0.5, 1, {5, 2}, 3).factors(2, 64, at::kCPU)[1], out[0]));
  EXPECT_TRUE(testing::bitwise_equal(
      weights_dropout(0.5, 1, {2}, 3).factors(2, 80, at::kCPU).slice(2, 0, 64).slice(3, 0, 64), out))
      << "not on the length";
  for (const Tensor& other : {of(2, 2, 3), of(1, 3, 3), of(1, 2, 4)}) {
    EXPECT_NEAR((other == out).to(at::kFloat).mean().item<double>(), 0.5, 0.05);
  }
}

TEST(AttentionDropout, OffHasNoKeysAndWrongOnesAreRefused) {
  EXPECT_FALSE(weights_dropout(0, 1, {0}, 0).is_on());
  EXPECT_THROW(weights_dropout(1, 1, {0}, 0), c10::ValueError);
  EXPECT_THROW(weights_dropout(0.5, 1, {0}, 0).check_batch(2), c10::ValueError);
}

}  // namespace
}  // namespace dalle::layers

// Gumbel-softmax, KL to uniform, and codes.
#include "dalle/layers/relaxation.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>

#include "dalle/core/random.h"
#include "support/golden.h"
#include "support/tensor_matchers.h"

namespace dalle::layers {
namespace {

using testing::close_to;

TEST(Relaxation, ValuesAndGradientsMatchPyTorch) {
  const testing::Golden golden("dvae_loss.safetensors");
  for (const auto& [name, temperature] : {std::pair{"1", 1.0}, std::pair{"0.3", 0.3}, std::pair{"0.0625", 0.0625}}) {
    const Tensor logits = golden.at("logits").clone().requires_grad_();
    const Tensor sample = gumbel_softmax(logits, golden.at("gumbel"), temperature);
    EXPECT_TRUE(close_to(sample, golden.at(str("relax.", name)), 1e-5)) << name;
    (sample * golden.at("relax.loss_weight")).sum().backward();
    EXPECT_TRUE(close_to(logits.grad(), golden.at(str("grad.relax.", name, ".logits")), 1e-5)) << name;
  }
}

TEST(Relaxation, IsSoftInTheForwardPass) {
  at::manual_seed(0);
  const Tensor sample = gumbel_softmax(at::randn({2, 8, 3, 3}), at::randn({2, 8, 3, 3}), 1.0);
  EXPECT_TRUE(close_to(sample.sum(1), at::ones({2, 3, 3}), 1e-6));
  EXPECT_LT(sample.max().item<double>(), 0.999);
  EXPECT_GT(sample.min().item<double>(), 0);
}

TEST(Relaxation, LowTemperatureTendsToTheArgmaxOfNoisyLogits) {
  at::manual_seed(1);
  const Tensor logits = at::randn({1, 8, 4, 4}), noise = at::randn({1, 8, 4, 4});
  const Tensor sample = gumbel_softmax(logits, noise, 1e-4);
  EXPECT_TRUE(close_to(sample, one_hot_codes(argmax_codes(logits + noise), 8), 1e-3));
}

TEST(Relaxation, ArgmaxWithGumbelNoiseDrawsFromTheSoftmax) {
  const Tensor logits = at::tensor({0.0, 1.0, -1.0, 2.0}, at::kFloat).view({1, 4, 1, 1});
  const int64_t draws = 20'000;
  const std::array keys{random_key(0, Purpose::kGumbel, 3)};
  const Tensor noise = gumbel_rows(keys, draws * 4, at::kCPU).view({draws, 4, 1, 1});
  const Tensor codes = argmax_codes(gumbel_softmax(logits, noise, 0.5)).flatten();
  const Tensor shares = at::bincount(codes, {}, 4).to(at::kDouble) / static_cast<double>(draws);
  const Tensor p = at::softmax(logits.flatten().to(at::kDouble), 0);
  for (int64_t i = 0; i < 4; ++i) {
    const double expected = p[i].item<double>();
    EXPECT_NEAR(shares[i].item<double>(), expected, 5 * std::sqrt(expected * (1 - expected) / draws)) << i;
  }
}

TEST(Relaxation, KlOfUniformIsZeroAndOfOneHotIsLnV) {
  const Tensor uniform = kl_to_uniform(at::full({2, 8192, 2, 2}, 3.0f));
  ASSERT_EQ(uniform.sizes(), (std::vector<int64_t>{2, 2, 2}));
  EXPECT_LT(uniform.abs().max().item<double>(), 1e-5);
  const Tensor codes = at::tensor({17, 8191}, at::kLong).view({1, 1, 2});
  const Tensor certain = kl_to_uniform(one_hot_codes(codes, 8192) * 1e4);
  EXPECT_TRUE(close_to(certain, at::full({1, 1, 2}, 9.010913), 1e-6));
}

TEST(Relaxation, KlOfAFairCoinOverTwoCodesIsLnHalfV) {
  Tensor logits = at::full({1, 64, 1, 1}, -1e4f);
  logits.slice(1, 3, 5).fill_(0);
  EXPECT_NEAR(kl_to_uniform(logits).item<double>(), std::log(32.0), 1e-6);
}

TEST(Relaxation, KlMatchesPyTorchWithGradient) {
  const testing::Golden golden("dvae_loss.safetensors");
  const Tensor logits = golden.at("logits").clone().requires_grad_();
  const Tensor kl = kl_to_uniform(logits);
  EXPECT_TRUE(close_to(kl, golden.at("kl"), 1e-5));
  (kl * golden.at("relax.loss_weight").select(1, 0)).sum().backward();
  EXPECT_TRUE(close_to(logits.grad(), golden.at("grad.kl.logits"), 1e-5));
}

TEST(Relaxation, CodesAndOneHotAreInverse) {
  const Tensor codes = at::arange(24, at::kLong).view({2, 3, 4}).remainder(7);
  const Tensor one_hot = one_hot_codes(codes, 7);
  ASSERT_EQ(one_hot.sizes(), (std::vector<int64_t>{2, 7, 3, 4}));
  EXPECT_EQ(one_hot.scalar_type(), at::kFloat);
  EXPECT_EQ(one_hot.sum().item<double>(), 24);
  EXPECT_TRUE(at::equal(argmax_codes(one_hot), codes));
}

}  // namespace
}  // namespace dalle::layers

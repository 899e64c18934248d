// Gumbel-softmax, KL to uniform, and codes.
#include "dalle/layers/relaxation.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "dalle/core/random.h"
#include "support/golden.h"
#include "support/random_tensor.h"
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

// One picture's keys and noise as relax() draws it, in the layout of the logits.
struct Draws {
  std::vector<RandomKey> keys;
  Tensor gumbel_BVHW;
};

Draws draws(int64_t batch, int64_t vocab, int64_t height, int64_t width) {
  Draws out;
  for (int64_t b = 0; b < batch; ++b) out.keys.push_back(random_key(5, Purpose::kGumbel, static_cast<uint64_t>(b)));
  out.gumbel_BVHW =
      gumbel_rows(out.keys, height * width * vocab, at::kCPU).view({batch, height, width, vocab}).permute({0, 3, 1, 2});
  return out;
}

// Values and gradients of relax() and of the formula, as a loss that uses both results.
struct Outcome {
  Tensor codes, kl, grad;
};

template <class Function>
Outcome outcome(const Tensor& logits, const Function& function) {
  const Tensor leaf = logits.clone().requires_grad_();
  const auto [codes, kl] = function(leaf);
  const Tensor weight = testing::random_tensor(7, codes.sizes()), kl_weight = testing::random_tensor(8, kl.sizes());
  ((codes * weight.to(codes.scalar_type())).sum() + (kl * kl_weight.to(kl.scalar_type())).sum()).backward();
  return {codes.detach(), kl.detach(), leaf.grad()};
}

TEST(Relax, IsTheFormulaForAnySizeAndTemperature) {
  for (const int64_t vocab : {2, 15, 16, 17, 100, 8192}) {
    for (const double temperature : {1.0, 0.3, 0.0625}) {
      const Draws noise = draws(2, vocab, 3, 2);
      const Tensor logits = testing::random_tensor(vocab, {2, vocab, 3, 2}) * 3;
      const Outcome fused = outcome(logits, [&](const Tensor& x) {
        const Relaxation out = relax(x, noise.keys, temperature);
        return std::pair{out.codes_BVHW, out.kl_BHW};
      });
      // The reference in f64: what is left is the fused pass's own rounding.
      const Outcome plain = outcome(logits.to(at::kDouble), [&](const Tensor& x) {
        return std::pair{gumbel_softmax(x, noise.gumbel_BVHW.to(at::kDouble), temperature), kl_to_uniform(x)};
      });
      EXPECT_TRUE(close_to(fused.codes, plain.codes, 1e-5)) << vocab << " " << temperature;
      EXPECT_TRUE(close_to(fused.kl, plain.kl, 1e-5)) << vocab << " " << temperature;
      EXPECT_TRUE(close_to(fused.grad, plain.grad, 1e-5)) << vocab << " " << temperature;
    }
  }
}

TEST(Relax, EachResultAloneHasItsGradient) {
  const Draws noise = draws(1, 40, 2, 2);
  const Tensor logits = testing::random_tensor(1, {1, 40, 2, 2});
  const Tensor weight = testing::random_tensor(2, {1, 40, 2, 2});
  const Tensor a = logits.clone().requires_grad_(), b = logits.clone().requires_grad_();
  (relax(a, noise.keys, 0.5).codes_BVHW * weight).sum().backward();
  (gumbel_softmax(b, noise.gumbel_BVHW, 0.5) * weight).sum().backward();
  EXPECT_TRUE(close_to(a.grad(), b.grad(), 1e-5));
  const Tensor c = logits.clone().requires_grad_(), d = logits.clone().requires_grad_();
  relax(c, noise.keys, 0.5).kl_BHW.sum().backward();
  kl_to_uniform(d).sum().backward();
  EXPECT_TRUE(close_to(c.grad(), d.grad(), 1e-5));
}

TEST(Relax, InBf16IsTheF32ResultRounded) {
  const Draws noise = draws(2, 8192, 2, 2);
  const Tensor logits = (testing::random_tensor(3, {2, 8192, 2, 2}) * 3).to(at::kBFloat16);
  const Relaxation low = relax(logits, noise.keys, 0.5), full = relax(logits.to(at::kFloat), noise.keys, 0.5);
  EXPECT_EQ(low.codes_BVHW.scalar_type(), at::kBFloat16);
  EXPECT_EQ(low.kl_BHW.scalar_type(), at::kFloat);
  EXPECT_TRUE(at::equal(low.codes_BVHW, full.codes_BVHW.to(at::kBFloat16)));
  EXPECT_TRUE(at::equal(low.kl_BHW, full.kl_BHW));
}

TEST(Relax, AGradientThatAllCodesShareChangesNothingInBf16) {
  const Draws noise = draws(2, 512, 2, 2);
  const Tensor logits = (testing::random_tensor(3, {2, 512, 2, 2}) * 4).to(at::kBFloat16);
  const auto gradient = [&](double shared, at::ScalarType type) {
    const Tensor leaf = logits.to(type, /*non_blocking=*/false, /*copy=*/true).requires_grad_();
    const Tensor upstream = (testing::random_tensor(4, {2, 512, 2, 2}) + shared).to(type);
    (relax(leaf, noise.keys, 0.0625).codes_BVHW * upstream).sum().backward();
    return leaf.grad();
  };
  // bf16 rounds the part that differs between codes to 1/16 here; what must not be left is 16 (1 - sum z) / 0.0625.
  EXPECT_TRUE(close_to(gradient(0, at::kBFloat16), gradient(0, at::kFloat), 2e-2));
  const Tensor shared = gradient(16, at::kBFloat16), alone = gradient(0, at::kFloat);
  EXPECT_LT((shared.to(at::kFloat) - alone).norm().item<double>(), 0.12 * alone.norm().item<double>());
  EXPECT_LT(shared.to(at::kFloat).sum(1).abs().max().item<double>(), 0.05 * alone.abs().max().item<double>());
}

TEST(Relax, DoesNotDependOnTheBatch) {
  const Draws noise = draws(3, 100, 4, 4);
  const Tensor logits = testing::random_tensor(4, {3, 100, 4, 4});
  const Relaxation all = relax(logits, noise.keys, 0.7);
  for (int64_t b = 0; b < 3; ++b) {
    const Relaxation one =
        relax(logits.slice(0, b, b + 1), std::span(noise.keys).subspan(static_cast<size_t>(b), 1), 0.7);
    EXPECT_TRUE(at::equal(one.codes_BVHW[0], all.codes_BVHW[b])) << b;
    EXPECT_TRUE(at::equal(one.kl_BHW[0], all.kl_BHW[b])) << b;
  }
}

TEST(Relax, StraightThroughIsHardForwardAndSoftBackward) {
  const Draws noise = draws(2, 50, 2, 3);
  const Tensor logits = testing::random_tensor(6, {2, 50, 2, 3});
  const auto run = [&](bool straight_through) {
    return outcome(logits, [&](const Tensor& x) {
      const Relaxation out = relax(x, noise.keys, 0.5, straight_through);
      return std::pair{out.codes_BVHW, out.kl_BHW};
    });
  };
  const Outcome hard = run(true), soft = run(false);
  EXPECT_TRUE(at::equal(hard.codes, one_hot_codes(argmax_codes(logits + noise.gumbel_BVHW), 50)));
  EXPECT_TRUE(at::equal(hard.grad, soft.grad));
  EXPECT_FALSE(at::equal(hard.codes, soft.codes));
}

TEST(Relax, InF64ItIsTheFormulaItself) {
  const Draws noise = draws(2, 20, 2, 3);
  const Tensor logits = testing::random_tensor(6, {2, 20, 2, 3}).to(at::kDouble);
  const Relaxation out = relax(logits, noise.keys, 0.5), hard = relax(logits, noise.keys, 0.5, true);
  EXPECT_TRUE(close_to(out.codes_BVHW, gumbel_softmax(logits, noise.gumbel_BVHW.to(at::kDouble), 0.5), 1e-14));
  EXPECT_TRUE(close_to(out.kl_BHW, kl_to_uniform(logits), 1e-14));
  EXPECT_TRUE(at::equal(hard.codes_BVHW.to(at::kFloat), one_hot_codes(argmax_codes(out.codes_BVHW), 20)));
}

TEST(Relax, NanLogitsGiveNan) {
  const Draws noise = draws(1, 30, 1, 2);
  Tensor logits = testing::random_tensor(9, {1, 30, 1, 2});
  logits[0][17][0][1] = std::numeric_limits<float>::quiet_NaN();
  const Relaxation out = relax(logits, noise.keys, 0.5);
  EXPECT_TRUE(out.codes_BVHW.select(3, 1).isnan().all().item<bool>());
  EXPECT_TRUE(out.kl_BHW[0][0][1].isnan().item<bool>());
  EXPECT_FALSE(out.codes_BVHW.select(3, 0).isnan().any().item<bool>());
}

// The noise is made of the same bits on both; its logarithms, like all the rest, round differently. In f32 what counts is the
// last place of a noisy logit of up to 16, over the temperature; in bf16 that of the codes, which the gradient is made of.
TEST(Relax, TheGpuGivesTheCpusResult) {
  if (!at::hasCUDA()) GTEST_SKIP() << "no GPU";
  const at::Device gpu(at::kCUDA, 0);
  for (const at::ScalarType type : {at::kFloat, at::kBFloat16}) {
    for (const int64_t vocab : {2, 17, 100, 8192}) {
      for (const double temperature : {1.0, 0.0625}) {
        const double tolerance = type == at::kFloat ? std::max(1e-5, 0x1p-20 / temperature) : 0x1p-7;
        for (const bool straight_through : {false, true}) {
          SCOPED_TRACE(dalle::str(type, " ", vocab, " ", temperature, " ", straight_through));
          const Draws noise = draws(2, vocab, 3, 2);
          const Tensor logits = (testing::random_tensor(vocab, {2, vocab, 3, 2}) * 3).to(type);
          const auto on = [&](at::Device device) {
            const Tensor leaf = logits.to(device, type, /*non_blocking=*/false, /*copy=*/true).requires_grad_();
            const Relaxation out = relax(leaf, noise.keys, temperature, straight_through);
            const Tensor weight = testing::random_tensor(7, logits.sizes()).to(device, type);
            const Tensor kl_weight = testing::random_tensor(8, out.kl_BHW.sizes()).to(device);
            ((out.codes_BVHW * weight).sum() + (out.kl_BHW * kl_weight).sum()).backward();
            return Outcome{out.codes_BVHW.detach().cpu(), out.kl_BHW.detach().cpu(), leaf.grad().cpu()};
          };
          const Outcome expected = on(at::kCPU), actual = on(gpu);
          EXPECT_EQ(actual.codes.scalar_type(), type);
          EXPECT_EQ(actual.kl.scalar_type(), at::kFloat);
          EXPECT_EQ(actual.grad.scalar_type(), type);
          if (straight_through) {
            EXPECT_TRUE(at::equal(actual.codes, expected.codes));
          } else {
            EXPECT_TRUE(close_to(actual.codes, expected.codes, tolerance));
          }
          EXPECT_TRUE(close_to(actual.kl, expected.kl, 1e-5)) << "f32 for either type";
          EXPECT_TRUE(close_to(actual.grad, expected.grad, tolerance));
        }
      }
    }
  }
}

TEST(Relax, RefusesAWrongNumberOfKeysAndOtherTypes) {
  const Draws noise = draws(2, 8, 2, 2);
  EXPECT_THROW(relax(at::zeros({3, 8, 2, 2}), noise.keys, 1), c10::ValueError);
  EXPECT_THROW(relax(at::zeros({2, 8, 2, 2}), noise.keys, 0), c10::ValueError);
  EXPECT_THROW(relax(at::zeros({2, 8, 2, 2}, at::kLong), noise.keys, 1), c10::ValueError);
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

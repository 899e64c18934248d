// Relaxed codes: soft or straight-through, and noise that belongs to a picture's position.
#include "dalle/training/dvae_relaxation.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "dalle/layers/relaxation.h"
#include "support/tensor_matchers.h"

namespace dalle::training {
namespace {

using testing::close_to;

Tensor some_logits() {
  at::manual_seed(2);
  return at::randn({3, 16, 4, 4}).contiguous(at::MemoryFormat::ChannelsLast);
}

const std::vector<int64_t> kPositions{7, 3, 11};

TEST(DvaeRelaxation, IsTheGumbelSoftmaxOfThePicturesOwnNoise) {
  const Tensor logits = some_logits();
  const layers::Relaxation all = relax_codes(logits, kPositions, {.seed = 5, .temperature = 0.7});
  for (size_t i = 0; i < kPositions.size(); ++i) {
    const auto b = static_cast<int64_t>(i);
    const RandomKey key = random_key(5, Purpose::kGumbel, static_cast<uint64_t>(kPositions[i]));
    const Tensor noise = gumbel_rows({&key, 1}, 16 * 16, at::kCPU).view({1, 4, 4, 16}).permute({0, 3, 1, 2});
    const Tensor one = logits.slice(0, b, b + 1);
    EXPECT_TRUE(close_to(all.codes_BVHW.slice(0, b, b + 1), layers::gumbel_softmax(one, noise, 0.7), 1e-5));
    EXPECT_TRUE(close_to(all.kl_BHW.slice(0, b, b + 1), layers::kl_to_uniform(one), 1e-5));
    const layers::Relaxation alone = relax_codes(one, {kPositions[i]}, {.seed = 5, .temperature = 0.7});
    EXPECT_TRUE(close_to(alone.codes_BVHW, all.codes_BVHW.slice(0, b, b + 1), 1e-6)) << "whatever its batch";
  }
}

TEST(DvaeRelaxation, TheArgmaxIsADrawThatTheTemperatureDoesNotChange) {
  const Tensor logits = some_logits();
  const auto codes = [&](double temperature) {
    return layers::argmax_codes(relax_codes(logits, kPositions, {.temperature = temperature}).codes_BVHW);
  };
  EXPECT_TRUE(at::equal(codes(1), codes(0.0625)));
  EXPECT_FALSE(at::equal(codes(1), layers::argmax_codes(logits))) << "it has noise";
}

TEST(DvaeRelaxation, StraightThroughIsHardForwardsAndSoftBackwards) {
  const Tensor weight = at::randn({3, 16, 4, 4});
  Tensor values[2], gradients[2];
  for (const bool straight_through : {false, true}) {
    const Tensor logits = some_logits().requires_grad_();
    const Tensor codes =
        relax_codes(logits, kPositions, {.temperature = 0.5, .straight_through = straight_through}).codes_BVHW;
    (codes * weight).sum().backward();
    values[straight_through] = codes.detach();
    gradients[straight_through] = logits.grad();
  }
  EXPECT_TRUE(at::equal(values[1], layers::one_hot_codes(layers::argmax_codes(values[0]), 16)));
  EXPECT_LT(values[0].amax(1).mean().item<double>(), 0.95);
  EXPECT_TRUE(close_to(gradients[1], gradients[0], 1e-6));
  EXPECT_GT(gradients[0].abs().max().item<double>(), 0.01);
}

}  // namespace
}  // namespace dalle::training

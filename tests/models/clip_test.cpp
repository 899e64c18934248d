// CLIP: the published names and size, PyTorch's values and gradients, and its two towers' properties.
#include "dalle/models/clip.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "dalle/core/error.h"
#include "support/golden.h"
#include "support/parameter_list.h"
#include "support/runners.h"
#include "support/tensor_matchers.h"

namespace dalle::models {
namespace {

using testing::bitwise_equal;
using testing::close_to;

/// The model of scripts/golden/clip.py.
const ClipConfig kTiny{.image_size = 16,
                       .patch_size = 8,
                       .vision_dim = 16,
                       .vision_layers = 2,
                       .vision_heads = 2,
                       .text_context = 6,
                       .text_vocab_size = 20,
                       .text_dim = 12,
                       .text_layers = 2,
                       .text_heads = 3,
                       .embed_dim = 10};

TEST(Clip, NamesAndShapesAreThePublishedVitB32s) {
  const Clip clip{ClipConfig{}};
  EXPECT_TRUE(clip.device().is_meta());
  EXPECT_EQ(testing::parameter_list(clip), testing::golden_parameter_list("clip_parameters.txt"));
  EXPECT_EQ(clip.num_parameters(), 151'277'313);
}

TEST(Clip, FeaturesLossAndGradientsMatchPyTorch) {
  const testing::Golden golden("clip.safetensors");
  Clip clip(kTiny);
  testing::load_golden(clip, golden);
  const Tensor image = clip.encode_image(golden.at("pixels")), text = clip.encode_text(golden.at("ids"));
  EXPECT_TRUE(close_to(image, golden.at("image_features"), 1e-5));
  EXPECT_TRUE(close_to(text, golden.at("text_features"), 1e-5));
  const Tensor loss = contrastive_loss(image, text, clip.scale());
  EXPECT_TRUE(close_to(loss, golden.at("loss"), 1e-5));
  loss.backward();
  for (const auto& [name, p] : clip.named_parameters()) {
    EXPECT_TRUE(close_to(p->tensor.grad(), golden.at("grad." + name), 1e-5)) << name;
  }
}

TEST(Clip, FeaturesHaveUnitLength) {
  Clip clip(kTiny);
  clip.materialize(at::kCPU);
  clip.initialize(0);
  at::manual_seed(0);
  EXPECT_TRUE(close_to(clip.encode_image(at::rand({3, 3, 16, 16})).norm(2, {1}), at::ones({3}), 1e-6));
  EXPECT_TRUE(close_to(clip.encode_text(at::randint(20, {3, 6}, at::kLong)).norm(2, {1}), at::ones({3}), 1e-6));
}

TEST(Clip, TextAfterTheEndChangesNoBitAndTextBeforeItDoes) {
  Clip clip(kTiny);
  testing::load_golden(clip, testing::Golden("clip.safetensors"));
  const Tensor ids = at::tensor({18, 4, 9, 19, 0, 0}, at::kLong).view({1, 6}), before = clip.encode_text(ids);
  for (int64_t slot = 0; slot < 6; ++slot) {
    if (slot == 3) continue;  // the end itself
    Tensor changed = ids.clone();
    changed[0][slot] = 7;
    EXPECT_EQ(static_cast<bool>(bitwise_equal(clip.encode_text(changed), before)), slot > 3) << slot;
  }
}

TEST(Clip, EveryPatchMatters) {
  Clip clip(kTiny);
  testing::load_golden(clip, testing::Golden("clip.safetensors"));
  at::manual_seed(0);
  const Tensor pixels = at::rand({1, 3, 16, 16}).requires_grad_();
  (clip.encode_image(pixels) * at::randn({10})).sum().backward();
  EXPECT_EQ(pixels.grad().eq(0).sum().item<int64_t>(), 0);
}

TEST(Clip, RunnerSeesBothTowersInOrder) {
  Clip clip(kTiny);
  testing::load_golden(clip, testing::Golden("clip.safetensors"));
  testing::RecordingRunner runner;
  clip.encode_image(at::rand({1, 3, 16, 16}), runner);
  clip.encode_text(at::ones({1, 6}, at::kLong), runner);
  EXPECT_THAT(runner.indices, ::testing::ElementsAre(0, 1, 2, 3, 4, 5, 6, 7));
}

TEST(Clip, ScaleStartsAtOneOverSevenHundredthsAndStopsAtAHundred) {
  Clip clip(kTiny);
  clip.materialize(at::kCPU);
  clip.initialize(0);
  EXPECT_NEAR(clip.scale().item<double>(), 1 / 0.07, 1e-4);
  clip.logit_scale.tensor.detach().fill_(9);
  EXPECT_EQ(clip.scale().item<double>(), 100);
}

TEST(Clip, ContrastiveLossOfUnrelatedAndOfMatchedFeatures) {
  const Tensor scale = at::full({}, 100.0);
  const Tensor same = at::zeros({8, 4}).index_fill_(1, at::tensor({0}, at::kLong), 1);
  EXPECT_NEAR(contrastive_loss(same, same, scale).item<double>(), std::log(8.0), 1e-5);
  EXPECT_NEAR(contrastive_loss(at::eye(4), at::eye(4), scale).item<double>(), 0, 1e-6);
  at::manual_seed(0);
  const Tensor a = at::randn({5, 4}), b = at::randn({5, 4}), s = at::ones({});
  EXPECT_TRUE(close_to(contrastive_loss(a, b, s), contrastive_loss(b, a, s), 1e-6));  // symmetric
}

TEST(Clip, TextIdsKeepTheEnd) {
  EXPECT_THAT(clip_text_ids(kTiny, {4, 5}), ::testing::ElementsAre(18, 4, 5, 19, 0, 0));
  EXPECT_THAT(clip_text_ids(kTiny, {}), ::testing::ElementsAre(18, 19, 0, 0, 0, 0));
  EXPECT_THAT(clip_text_ids(kTiny, {1, 2, 3, 4}), ::testing::ElementsAre(18, 1, 2, 3, 4, 19));
  EXPECT_THAT(clip_text_ids(kTiny, {1, 2, 3, 4, 5, 6, 7, 8}), ::testing::ElementsAre(18, 1, 2, 3, 4, 19));
}

TEST(Clip, Bf16IsNearF32) {
  const testing::Golden golden("clip.safetensors");
  Clip clip(kTiny, at::kBFloat16);
  testing::load_golden(clip, golden);
  const Tensor image = clip.encode_image(golden.at("pixels")), text = clip.encode_text(golden.at("ids"));
  EXPECT_EQ(image.scalar_type(), at::kFloat);
  EXPECT_TRUE(close_to(image, golden.at("image_features"), 3e-2));
  EXPECT_TRUE(close_to(text, golden.at("text_features"), 3e-2));
  EXPECT_FALSE(close_to(image, golden.at("image_features"), 1e-5));
}

/// Dims that packed weights take; a patch whose numbers do not fill the kernels' multiples.
const ClipConfig kPackable{.image_size = 21,
                           .patch_size = 7,
                           .vision_dim = 64,
                           .vision_layers = 2,
                           .vision_heads = 2,
                           .text_context = 9,
                           .text_vocab_size = 20,
                           .text_dim = 32,
                           .text_layers = 2,
                           .text_heads = 1,
                           .embed_dim = 10};

TEST(Clip, PackedWeightsGiveWhatPlainBf16Gives) {
  if (!layers::has_bf16_products()) GTEST_SKIP() << "no bf16 products on this processor";
  const auto fill = [](Clip& clip) {
    clip.materialize(at::kCPU);
    clip.initialize(3);
    at::manual_seed(4);
    for (const auto& [name, p] : clip.named_parameters()) p->tensor.detach().add_(at::randn(p->tensor.sizes()) * 0.2);
  };
  Clip exact(kPackable), plain(kPackable, at::kBFloat16), packed(kPackable, at::kBFloat16);
  for (Clip* clip : {&exact, &plain, &packed}) fill(*clip);
  packed.pack_for_inference();
  const Tensor pixels = at::rand({5, 3, 21, 21});
  const Tensor ids =
      at::tensor({18, 4, 9, 19, 0, 0, 0, 0, 0, 18, 19, 0, 0, 0, 0, 0, 0, 0, 18, 1, 2, 3, 4, 5, 19, 0, 0}, at::kLong)
          .view({3, 9});
  const auto compare = [&](const auto& encode) {
    const c10::NoGradGuard no_grad;
    const Tensor expected = encode(exact), ours = encode(packed);
    const double rounding = testing::relative_error(encode(plain), expected);
    EXPECT_GT(rounding, 1e-4);
    EXPECT_LT(testing::relative_error(ours, expected), 2 * rounding);
    EXPECT_FALSE(bitwise_equal(ours, encode(plain))) << "the packed weights were not used";
  };
  compare([&](const Clip& clip) { return clip.encode_image(pixels); });
  compare([&](const Clip& clip) { return clip.encode_text(ids); });
  const Tensor trained = packed.encode_image(pixels);
  EXPECT_TRUE(trained.requires_grad()) << "with gradients the plain path is taken";
  EXPECT_TRUE(bitwise_equal(trained.detach(), plain.encode_image(pixels).detach()));
}

TEST(Clip, PackingIsForBf16Alone) {
  Clip clip(kPackable);
  clip.materialize(at::kCPU);
  clip.initialize(3);
  const Tensor pixels = at::rand({2, 3, 21, 21});
  const c10::NoGradGuard no_grad;
  const Tensor before = clip.encode_image(pixels);
  clip.pack_for_inference();
  EXPECT_TRUE(bitwise_equal(clip.encode_image(pixels), before));
}

TEST(Clip, PixelsAreNormalisedAsTheConfigSays) {
  auto config = kTiny;
  config.pixel_mean = {0.5, 0.25, 0};
  config.pixel_std = {0.5, 1, 2};
  Clip clip(config);
  testing::load_golden(clip, testing::Golden("clip.safetensors"));
  const Tensor seen = clip.normalise(at::ones({1, 3, 16, 16}));
  for (int64_t c = 0; c < 3; ++c) {
    EXPECT_TRUE(seen[0][c]
                    .eq((1 - config.pixel_mean[static_cast<size_t>(c)]) / config.pixel_std[static_cast<size_t>(c)])
                    .all()
                    .item<bool>());
  }
}

TEST(Clip, WrongShapesAndConfigsAreRefused) {
  Clip clip(kTiny);
  testing::load_golden(clip, testing::Golden("clip.safetensors"));
  EXPECT_THROW(clip.encode_image(at::zeros({1, 3, 16, 8})), c10::ValueError);
  EXPECT_THROW(clip.encode_text(at::zeros({1, 5}, at::kLong)), c10::ValueError);
  EXPECT_THROW(Clip({.image_size = 20, .patch_size = 8}), ConfigError);
  EXPECT_THROW(Clip({.text_vocab_size = 0}), c10::ValueError);  // 0: to be filled from the tokenizer
  EXPECT_THROW(Clip({.vision_dim = 10, .vision_heads = 4}), ConfigError);
  EXPECT_THROW(Clip({.pixel_mean = {0.5}}), ConfigError);
  EXPECT_THROW(Clip({.pixel_std = {0.5, 1, 1, 1}}), ConfigError);
}

}  // namespace
}  // namespace dalle::models

// The dVAE as a whole: the release's names, shapes and counts at paper size, and the full loss against PyTorch.
#include "dalle/models/dvae.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dalle/core/error.h"
#include "dalle/layers/likelihood.h"
#include "dalle/layers/relaxation.h"
#include "support/golden.h"
#include "support/parameter_list.h"
#include "support/runners.h"
#include "support/tensor_matchers.h"

namespace dalle::models {
namespace {

using testing::close_to;
using Shape = std::vector<int64_t>;

const DvaeConfig kSmall{.image_size = 32, .vocab_size = 16, .hidden_dim = 8, .decoder_init_dim = 8};

Tensor parameter(const layers::Module& module, const std::string& name) {
  for (const auto& [full, p] : module.named_parameters()) {
    if (full == name) return p->tensor;
  }
  throw std::runtime_error("no parameter " + name);
}

TEST(Dvae, CountsAndShapesAtPaperSizeWithoutMemory) {
  const Dvae dvae{DvaeConfig{}};
  EXPECT_TRUE(dvae.device().is_meta());
  EXPECT_EQ(dvae.encoder.num_parameters(), 53'786'240);
  EXPECT_EQ(dvae.decoder.num_parameters(), 43'829'766);
  EXPECT_EQ(dvae.num_parameters(), 97'616'006);
  EXPECT_EQ(dvae.encoder.named_parameters().size(), 74u);
  EXPECT_EQ(dvae.decoder.named_parameters().size(), 76u);
  EXPECT_EQ(parameter(dvae, "decoder.blocks.input.w").sizes(), (Shape{128, 8192, 1, 1}));
  EXPECT_EQ(parameter(dvae, "encoder.blocks.output.conv.w").sizes(), (Shape{8192, 2048, 1, 1}));
  EXPECT_DOUBLE_EQ(dvae.encoder.groups.block(0).post_gain, 1.0 / 64);
  EXPECT_DOUBLE_EQ(dvae.decoder.groups.block(7).post_gain, 1.0 / 64);
}

TEST(Dvae, NamesAndShapesAreTheReleases) {
  const Dvae dvae{DvaeConfig{}};
  EXPECT_EQ(testing::parameter_list(dvae), testing::golden_parameter_list("dvae_parameters.txt"));
}

TEST(Dvae, ForwardShapesAreThePapers) {
  const at::NoGradGuard no_grad;
  Dvae dvae{{.hidden_dim = 4, .decoder_init_dim = 4}};  // narrow, but the paper's picture, grid and vocabulary
  dvae.materialize(at::kCPU);
  dvae.initialize(0);
  const Tensor logits = dvae.encode_logits(at::rand({1, 3, 256, 256}));
  EXPECT_EQ(logits.sizes(), (Shape{1, 8192, 32, 32}));
  EXPECT_EQ(dvae.decode_stats(logits).sizes(), (Shape{1, 6, 256, 256}));
}

TEST(Dvae, FullLossAndGradientsMatchPyTorch) {
  const testing::Golden weights("dvae.safetensors"), golden("dvae_loss.safetensors");
  Dvae dvae{kSmall};
  testing::load_golden(dvae, weights);
  const Tensor pixels = weights.at("pixels");
  const Tensor logits = dvae.encode_logits(pixels);
  const Tensor stats = dvae.decode_stats(layers::gumbel_softmax(logits, golden.at("full.gumbel"), 0.7));
  const Tensor nll = layers::logit_laplace_nll(layers::map_pixels(pixels), stats.slice(1, 0, 3), stats.slice(1, 3));
  const double subpixels = static_cast<double>(pixels.numel());
  const Tensor reconstruction = nll.sum() / subpixels, kl = layers::kl_to_uniform(logits).sum() / subpixels;
  const Tensor loss = reconstruction + 6.6 * kl;
  EXPECT_TRUE(close_to(reconstruction, golden.at("full.reconstruction"), 1e-5));
  EXPECT_TRUE(close_to(kl, golden.at("full.kl"), 1e-5));
  EXPECT_TRUE(close_to(loss, golden.at("full.loss"), 1e-5));
  loss.backward();
  for (const auto& [name, p] : dvae.named_parameters()) {
    EXPECT_TRUE(close_to(p->tensor.grad(), golden.at("grad.full." + name), 1e-5)) << name;
  }
}

TEST(Dvae, KlCoefficientIsThePapers) {
  // beta per sub-pixel is beta / 192 on the mean over positions: 6.6 / 192 = 0.034375 at paper size.
  const DvaeConfig paper;
  const int64_t positions = paper.grid_size() * paper.grid_size(), subpixels = 3 * paper.image_size * paper.image_size;
  EXPECT_EQ(positions, 1024);
  EXPECT_EQ(subpixels / positions, 192);
  EXPECT_DOUBLE_EQ(6.6 * static_cast<double>(positions) / static_cast<double>(subpixels), 0.034375);
  const Tensor kl = layers::kl_to_uniform(layers::one_hot_codes(at::zeros({1, 32, 32}, at::kLong), 8192) * 1e4);
  EXPECT_NEAR(6.6 * kl.sum().item<double>() / static_cast<double>(subpixels), 0.034375 * 9.010913, 1e-6);
}

TEST(Dvae, EncodeAndDecodeAreTheirParts) {
  Dvae dvae{kSmall};
  testing::load_golden(dvae, testing::Golden("dvae.safetensors"));
  at::manual_seed(0);
  const Tensor pixels = at::rand({2, 3, 32, 32}), codes = dvae.encode(pixels);
  EXPECT_EQ(codes.sizes(), (Shape{2, 4, 4}));
  EXPECT_EQ(codes.scalar_type(), at::kLong);
  EXPECT_TRUE(at::equal(codes, dvae.encode_logits(pixels).argmax(1)));
  EXPECT_GT(codes.max().item<int64_t>() - codes.min().item<int64_t>(), 0);
  const Tensor picture = dvae.decode(codes);
  EXPECT_EQ(picture.sizes(), (Shape{2, 3, 32, 32}));
  EXPECT_GE(picture.min().item<double>(), 0);
  EXPECT_LE(picture.max().item<double>(), 1);
  const Tensor stats = dvae.decode_stats(layers::one_hot_codes(codes, 16));
  EXPECT_TRUE(close_to(picture, layers::unmap_pixels(at::sigmoid(stats.slice(1, 0, 3))), 1e-6));
}

TEST(Dvae, UntrainedModelHasAFlatCodeAndFiniteLoss) {
  Dvae dvae{{.image_size = 32, .vocab_size = 512, .hidden_dim = 16, .decoder_init_dim = 16}};
  dvae.materialize(at::kCPU);
  dvae.initialize(0);
  at::manual_seed(0);
  const Tensor kl = layers::kl_to_uniform(dvae.encode_logits(at::rand({2, 3, 32, 32})));
  EXPECT_GT(kl.mean().item<double>(), 0);
  EXPECT_LT(kl.mean().item<double>(), 0.2 * std::log(512.0));
}

TEST(Dvae, RunnerSeesEveryResblockOnce) {
  Dvae dvae{kSmall};
  testing::load_golden(dvae, testing::Golden("dvae.safetensors"));
  testing::RecordingRunner runner;
  dvae.decode_stats(dvae.encode_logits(at::rand({1, 3, 32, 32}), runner), runner);
  EXPECT_THAT(runner.indices, ::testing::ElementsAre(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15));
}

TEST(Dvae, AFrozenEncoderGetsNoGradient) {
  Dvae dvae{kSmall};
  testing::load_golden(dvae, testing::Golden("dvae.safetensors"));
  dvae.set_requires_grad(false, {"encoder."});
  dvae.decode_stats(dvae.encode_logits(at::rand({1, 3, 32, 32}))).sum().backward();
  for (const auto& [name, p] : dvae.named_parameters())
    EXPECT_EQ(p->tensor.grad().defined(), name.starts_with("decoder.")) << name;
}

// ------------------------------------------------------------------------------------------------ the VQ-VAE baseline

const DvaeConfig kQuantized{
    .image_size = 32, .vocab_size = 16, .hidden_dim = 8, .decoder_init_dim = 6, .quantizer = Quantizer::kVq};

TEST(Dvae, ACodebookTakesThePlaceOfTheDecodersFirstLayer) {
  const Dvae gumbel{{.image_size = 32, .vocab_size = 16, .hidden_dim = 8, .decoder_init_dim = 6}}, vq{kQuantized};
  EXPECT_EQ(parameter(vq, "encoder.blocks.output.conv.w").sizes(), (Shape{6, 64, 1, 1}));
  EXPECT_EQ(parameter(vq, "quantizer.codebook").sizes(), (Shape{16, 6}));
  EXPECT_EQ(parameter(vq, "quantizer.count").sizes(), (Shape{16}));
  EXPECT_THROW(parameter(vq, "decoder.blocks.input.w"), std::runtime_error);
  EXPECT_EQ(vq.decoder.named_parameters().size() + 2, gumbel.decoder.named_parameters().size());
  for (const auto& [name, p] : vq.named_parameters()) {
    const bool is_state = name.starts_with("quantizer.");
    EXPECT_EQ(p->tensor.requires_grad(), !is_state) << name;
    EXPECT_FALSE(is_state && p->decays) << name;
  }
}

TEST(Dvae, ACodebookModelEncodesAndDecodesByItsCodebook) {
  const at::NoGradGuard no_grad;
  Dvae dvae{kQuantized};
  dvae.materialize(at::kCPU);
  dvae.initialize(3);
  at::manual_seed(0);
  const Tensor pixels = at::rand({2, 3, 32, 32}), vectors = dvae.encode_logits(pixels), codes = dvae.encode(pixels);
  EXPECT_EQ(vectors.sizes(), (Shape{2, 6, 4, 4}));
  EXPECT_EQ(codes.sizes(), (Shape{2, 4, 4}));
  EXPECT_TRUE(at::equal(codes, dvae.quantizer->nearest(vectors)));
  const Tensor stats = dvae.decode_stats(dvae.quantizer->lookup(codes));
  EXPECT_EQ(stats.sizes(), (Shape{2, 6, 32, 32}));
  EXPECT_TRUE(at::equal(dvae.decode(codes), layers::reconstruction_from_stats(stats)));
}

TEST(Dvae, EachLikelihoodDecodesToItsOwnPicture) {
  const at::NoGradGuard no_grad;
  for (const auto likelihood : {layers::Likelihood::kLaplace, layers::Likelihood::kGaussian}) {
    DvaeConfig config = kSmall;
    config.likelihood = likelihood;
    Dvae dvae{config};
    dvae.materialize(at::kCPU);
    dvae.initialize(3);
    const Tensor codes = at::arange(16, at::kLong).view({1, 4, 4});
    const Tensor mu = dvae.decode_stats(layers::one_hot_codes(codes, 16)).slice(1, 0, 3);
    EXPECT_TRUE(at::equal(dvae.decode(codes), mu.clamp(0, 1)));
  }
}

TEST(Dvae, ConfigsThatDoNotFitAreRefused) {
  EXPECT_THROW(Dvae({.image_size = 36}), ConfigError);
  EXPECT_THROW(Dvae({.hidden_dim = 6}), ConfigError);
}

}  // namespace
}  // namespace dalle::models

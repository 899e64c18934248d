// The dVAE's halves against the released package at a small width (tests/golden/dvae.safetensors, scripts/golden/dvae.py).
#include "dalle/layers/dvae_blocks.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "support/golden.h"
#include "support/runners.h"
#include "support/tensor_matchers.h"

namespace dalle::layers {
namespace {

using testing::close_to;
using Shape = std::vector<int64_t>;

const DvaeBlockOptions kSmall{.hidden_dim = 8, .decoder_init_dim = 8, .vocab_size = 16};

struct Halves : Module {
  explicit Halves(const DvaeBlockOptions& options)
      : encoder(*this, "encoder", options), decoder(*this, "decoder", options) {}
  DvaeEncoder encoder;
  DvaeDecoder decoder;
};

/// One half with loss = sum(output * loss_weight): output and all gradients within 1e-5 of the largest value.
void expect_golden(const std::string& side, const std::function<Tensor(const Halves&, const Tensor&)>& forward) {
  const testing::Golden golden("dvae.safetensors");
  Halves halves(kSmall);
  testing::load_golden(halves, golden);
  const Tensor x = golden.at(side + ".input").clone().requires_grad_();
  const Tensor output = forward(halves, x);
  EXPECT_EQ(output.scalar_type(), at::kFloat);
  EXPECT_TRUE(close_to(output, golden.at(side + ".output"), 1e-5));
  (output * golden.at(side + ".loss_weight")).sum().backward();
  EXPECT_TRUE(close_to(x.grad(), golden.at(str("grad.", side, ".input")), 1e-5));
  for (const auto& [name, parameter] : halves.named_parameters()) {
    if (!name.starts_with(side)) continue;
    EXPECT_TRUE(close_to(parameter->tensor.grad(), golden.at("grad." + name), 1e-5)) << name;
  }
}

TEST(DvaeBlocks, EncoderMatchesTheReleasedPackage) {
  expect_golden("encoder", [](const Halves& h, const Tensor& x) { return h.encoder.forward(x, plain_runner()); });
}

TEST(DvaeBlocks, DecoderMatchesTheReleasedPackage) {
  expect_golden("decoder", [](const Halves& h, const Tensor& z) { return h.decoder.forward(z, plain_runner()); });
}

TEST(DvaeBlocks, BlocksPutThe1x1WhereTheReleaseDoes) {
  struct Two : Module {
    DvaeBlock encoder{*this, "e", DvaeBlock::Side::kEncoder, 8, 16, 8};
    DvaeBlock decoder{*this, "d", DvaeBlock::Side::kDecoder, 16, 16, 8};
  } two;
  EXPECT_EQ(two.encoder.conv_1.w.tensor.sizes(), (Shape{4, 8, 3, 3}));
  EXPECT_EQ(two.encoder.conv_4.w.tensor.sizes(), (Shape{16, 4, 1, 1}));
  EXPECT_EQ(two.decoder.conv_1.w.tensor.sizes(), (Shape{4, 16, 1, 1}));
  EXPECT_EQ(two.decoder.conv_4.w.tensor.sizes(), (Shape{16, 4, 3, 3}));
  ASSERT_NE(two.encoder.id_path, nullptr);
  EXPECT_EQ(two.encoder.id_path->w.tensor.sizes(), (Shape{16, 8, 1, 1}));
  EXPECT_EQ(two.decoder.id_path, nullptr);
  EXPECT_DOUBLE_EQ(two.encoder.post_gain, 0.015625);
  EXPECT_DOUBLE_EQ(two.decoder.post_gain, 0.015625);
}

TEST(DvaeBlocks, EveryResblockGoesThroughTheRunnerInOrder) {
  at::manual_seed(0);
  const DvaeBlockOptions options{
      .num_groups = 3, .num_blocks_per_group = 1, .hidden_dim = 8, .decoder_init_dim = 4, .vocab_size = 6};
  Halves halves(options);
  halves.materialize(at::kCPU);
  halves.initialize(0);
  testing::RecordingRunner runner;
  const Tensor logits = halves.encoder.forward(at::rand({1, 3, 8, 8}), runner);
  EXPECT_EQ(logits.sizes(), (Shape{1, 6, 2, 2}));
  const Tensor stats = halves.decoder.forward(at::softmax(logits, 1), runner);
  EXPECT_EQ(stats.sizes(), (Shape{1, 6, 8, 8}));
  EXPECT_THAT(runner.indices, ::testing::ElementsAre(0, 1, 2, 3, 4, 5));  // the decoder's follow the encoder's
  for (int64_t index = 0; index < 6; ++index) {
    testing::HalvingRunner halving(index);
    const Tensor z = at::softmax(logits, 1);
    EXPECT_EQ(at::equal(halves.decoder.forward(z, halving), stats), index < 3) << index;
  }
}

TEST(DvaeBlocks, GroupsAndBlocksComeFromTheOptions) {
  for (const int64_t groups : {1, 2, 5}) {
    const DvaeBlockOptions options{
        .num_groups = groups, .num_blocks_per_group = 3, .hidden_dim = 4, .decoder_init_dim = 4, .vocab_size = 5};
    Halves halves(options);
    halves.materialize(at::kCPU);
    halves.initialize(0);
    const int64_t size = int64_t{2} << (groups - 1);
    const Tensor logits = halves.encoder.forward(at::rand({2, 3, size, size}), plain_runner());
    EXPECT_EQ(logits.sizes(), (Shape{2, 5, 2, 2}));
    EXPECT_EQ(halves.decoder.forward(logits, plain_runner()).sizes(), (Shape{2, 6, size, size}));
    EXPECT_DOUBLE_EQ(halves.encoder.groups.block(0).post_gain, 1.0 / static_cast<double>(9 * groups * groups));
  }
}

TEST(DvaeBlocks, OtherShapesAreRefused) {
  Halves halves(kSmall);
  halves.materialize(at::kCPU);
  halves.initialize(0);
  const auto encode = [&](const Shape& shape) { halves.encoder.forward(at::zeros(shape), plain_runner()); };
  const auto decode = [&](const Shape& shape) { halves.decoder.forward(at::zeros(shape), plain_runner()); };
  EXPECT_THROW(encode({3, 32, 32}), c10::ValueError);
  EXPECT_THROW(encode({1, 4, 32, 32}), c10::ValueError);
  EXPECT_THROW(encode({1, 3, 36, 32}), c10::ValueError);
  EXPECT_THROW(decode({1, 15, 4, 4}), c10::ValueError);
  EXPECT_THROW(decode({16, 4, 4}), c10::ValueError);
}

TEST(DvaeBlocks, Bf16IsNearF32) {
  const testing::Golden golden("dvae.safetensors");
  for (const auto relaxation : {at::kFloat, at::kBFloat16}) {
    DvaeBlockOptions options = kSmall;
    options.compute_dtype = at::kBFloat16;
    options.relaxation_dtype = relaxation;
    Halves half(options);
    testing::load_golden(half, golden);
    const Tensor logits = half.encoder.forward(golden.at("encoder.input"), plain_runner());
    const Tensor stats = half.decoder.forward(golden.at("decoder.input"), plain_runner());
    EXPECT_EQ(logits.scalar_type(), relaxation);
    EXPECT_EQ(stats.scalar_type(), at::kFloat);
    EXPECT_TRUE(close_to(logits, golden.at("encoder.output"), 2e-2));
    EXPECT_TRUE(close_to(stats, golden.at("decoder.output"), 2e-2));
    EXPECT_FALSE(close_to(logits, golden.at("encoder.output"), 1e-5));  // it did compute in bf16
    EXPECT_FALSE(close_to(stats, golden.at("decoder.output"), 1e-5));
  }
}

TEST(DvaeBlocks, TheRelaxationConvolutionsFollowTheirOwnType) {
  // Only the outer convolution differs, so with f32 around the relaxation the encoder's logits have f32 resolution.
  const testing::Golden golden("dvae.safetensors");
  DvaeBlockOptions options = kSmall;
  options.compute_dtype = at::kBFloat16;
  Halves half(options);
  testing::load_golden(half, golden);
  const auto in_bf16 = [](const Tensor& x) { return x.to(at::kBFloat16).to(at::kFloat).eq(x).all().item<bool>(); };
  EXPECT_FALSE(in_bf16(half.encoder.forward(golden.at("encoder.input"), plain_runner())));
  options.relaxation_dtype = at::kBFloat16;
  Halves all(options);
  testing::load_golden(all, golden);
  EXPECT_TRUE(in_bf16(all.encoder.forward(golden.at("encoder.input"), plain_runner())));
}

}  // namespace
}  // namespace dalle::layers

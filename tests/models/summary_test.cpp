// Cost summaries against counts made another way: convolution by convolution, and pair by pair of the masks.
#include "dalle/models/summary.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dalle/core/tensor_memory.h"
#include "dalle/layers/checkpoint_runner.h"

namespace dalle::models {
namespace {

/// 2 x multiply-adds of a convolution that keeps its size.
double conv(int64_t in, int64_t out, int64_t kernel, int64_t side) {
  return 2.0 * static_cast<double>(in * out * kernel * kernel * side * side);
}

/// One dVAE resblock: three 3x3 and the 1x1 on the wide side away from the input (encoder) or on it (decoder).
double dvae_block(bool encoder, int64_t in, int64_t out, int64_t side) {
  const int64_t hidden = out / 4;
  const double identity = in == out ? 0 : conv(in, out, 1, side);
  return identity + conv(in, hidden, encoder ? 3 : 1, side) + 2 * conv(hidden, hidden, 3, side) +
         conv(hidden, out, encoder ? 1 : 3, side);
}

TEST(Summary, DvaeAtPaperSize) {
  const Summary summary = summarize(Dvae{DvaeConfig{}});
  EXPECT_EQ(summary.num_parameters, 97'616'006);
  EXPECT_EQ(summary.num_tensors, 150);
  double expected = conv(3, 256, 7, 256) + conv(2048, 8192, 1, 32) + conv(8192, 128, 1, 32) + conv(256, 6, 1, 256);
  int64_t in = 256;
  for (const int64_t group : {0, 1, 2, 3}) {
    const int64_t out = 256 << group, side = 256 >> group;
    expected += dvae_block(true, in, out, side) + dvae_block(true, out, out, side);
    in = out;
  }
  in = 128;
  for (const int64_t group : {0, 1, 2, 3}) {
    const int64_t out = 2048 >> group, side = 32 << group;
    expected += dvae_block(false, in, out, side) + dvae_block(false, out, out, side);
    in = out;
  }
  EXPECT_NEAR(summary.forward_flops_per_sample / expected, 1, 1e-12);
  EXPECT_NEAR(summary.forward_flops_per_sample / 2e9, 136.1 + 154.0, 0.1);  // giga multiply-adds, encoder and decoder
}

TEST(Summary, ACodebooksSearchCountsInPlaceOfTheTwoConvolutions) {
  const DvaeConfig vq{.quantizer = Quantizer::kVq};
  const double gumbel = summarize(Dvae{DvaeConfig{}}).forward_flops_per_sample;
  const double replaced = conv(2048, 8192, 1, 32) + conv(8192, 128, 1, 32);
  const double instead = conv(2048, 128, 1, 32) + 2.0 * 8192 * 128 * 32 * 32;
  EXPECT_NEAR(summarize(Dvae{vq}).forward_flops_per_sample / (gumbel - replaced + instead), 1, 1e-12);
}

TEST(Summary, PriorCountsThePairsThatItsMasksAllow) {
  const PriorConfig config{.text_context = 7,
                           .text_vocab_size = 30,
                           .grid_size = 6,
                           .image_vocab_size = 40,
                           .dim = 8,
                           .num_heads = 2,
                           .num_layers = 6,
                           .mlp_ratio = 3,
                           .conv_kernel = 5};
  const Summary summary = summarize(Prior{config});
  double expected = 2.0 * 8 * 30 * 6 + 2.0 * 8 * 40 * 36;  // heads on their own slots
  for (int64_t layer = 0; layer < 6; ++layer) {
    const Tensor mask = layers::attention_mask(config.layer_kind(layer), config.layout(), {5});
    expected += 2.0 * (4 + 2 * 3) * 8 * 8 * 43;  // q, k, v, out and two MLP matrices, 43 slots
    expected += 4.0 * 8 * static_cast<double>(mask.sum().item<int64_t>());  // scores and weighted sum
  }
  EXPECT_NEAR(summary.forward_flops_per_sample / expected, 1, 1e-12);
}

TEST(Summary, PriorAtPaperSizeIsTwelveBillion) {
  const Summary summary = summarize(Prior{PriorConfig{}});
  EXPECT_EQ(summary.num_parameters, 12'292'840'960);
  // 24 d^2 per slot and layer, 47 row, 16 column and 1 conv layer of attention, two heads.
  const double d = 3968, text = 32'896 + 262'144;
  const double pairs = 64 * text + 47 * 33'264.0 + 16 * 16'896.0 + 57'169;
  const double expected = 64 * 24 * d * d * 1280 + 4 * d * pairs + 2 * d * (16384 * 255.0 + 8192 * 1024.0);
  EXPECT_NEAR(summary.forward_flops_per_sample / expected, 1, 1e-12);
}

/// What a step takes on top of weights and gradients, counted at the allocator.
double measured_bytes(const PriorConfig& config, const PriorCompute& compute, int64_t batch, bool checkpointing) {
  Prior prior(config, compute);
  prior.materialize(at::kCPU);
  prior.initialize(0);
  for (const auto& [name, p] : prior.named_parameters()) p->tensor.mutable_grad() = at::zeros_like(p->tensor);
  const Tensor captions = at::zeros({batch, config.max_caption_tokens()}, at::kLong);
  const Tensor images = at::zeros({batch, config.image_context()}, at::kLong);
  layers::CheckpointRunner checkpointed;
  const auto step = [&] {
    const auto loss = prior.loss(captions, images, {}, checkpointing ? checkpointed : layers::plain_runner());
    (loss.text + loss.image).backward();
  };
  step();  // masks are made once
  return static_cast<double>(peak_tensor_bytes(step));
}

TEST(SummaryMemory, TheEstimateIsNearWhatIsMeasured) {
  const PriorConfig deep{.text_context = 16,
                         .text_vocab_size = 64,
                         .grid_size = 12,
                         .image_vocab_size = 64,
                         .dim = 128,
                         .num_heads = 2,
                         .num_layers = 6};
  PriorConfig wide_vocabulary = deep;
  wide_vocabulary.image_vocab_size = 4096;
  wide_vocabulary.num_layers = 2;
  for (const PriorConfig& config : {deep, wide_vocabulary}) {
    for (const auto type : {at::kFloat, at::kBFloat16}) {
      for (const bool checkpointing : {false, true}) {
        const double estimate = activation_bytes(config, {type, type}, 8, checkpointing);
        const double measured = measured_bytes(config, {type, type}, 8, checkpointing);
        EXPECT_NEAR(estimate / measured, 1, 0.25)
            << config.num_layers << " layers, " << type << (checkpointing ? ", checkpointed: " : ": ") << measured;
      }
    }
  }
}

TEST(Summary, ClipAtVitB32) {
  const Summary summary = summarize(Clip{ClipConfig{}});
  EXPECT_EQ(summary.num_parameters, 151'277'313);
  // Twice the weights that every position passes, over 50 image and 77 text positions, and attention on top.
  const double vision = 2 * 12 * 12 * 768.0 * 768 * 50 + 12 * 4 * 768.0 * 50 * 50 + 2 * 3072.0 * 768 * 49;
  const double text = 2 * 12 * 12 * 512.0 * 512 * 77 + 12 * 4 * 512.0 * (77 * 78 / 2);
  EXPECT_NEAR(summary.forward_flops_per_sample / (vision + text), 1, 1e-3);
}

TEST(Summary, TextNamesTheNumbers) {
  const std::string text = describe(summarize(Dvae{DvaeConfig{}}), 8);
  EXPECT_THAT(text, ::testing::HasSubstr("97,616,006"));
  EXPECT_THAT(text, ::testing::HasSubstr("150 tensors"));
  EXPECT_THAT(text, ::testing::HasSubstr("batch 8"));
  EXPECT_THAT(text, ::testing::HasSubstr("13.9 TFLOP"));
}

}  // namespace
}  // namespace dalle::models

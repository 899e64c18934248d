// The fused steps against the whole model at once, for every attention kind and option of the model; and that a candidate's
// logits depend bitwise on nothing but its own tokens and caption.
#include "dalle/generation/fused_model.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "dalle/core/error.h"
#include "dalle/generation/prior_decoder.h"
#include "generation/random_prior.h"
#include "support/tensor_matchers.h"

namespace dalle::generation {
namespace {

using testing::bitwise_equal;
using testing::close_to;
using testing::relative_error;

struct Threads {
  explicit Threads(int count) { at::set_num_threads(count); }
  ~Threads() { at::set_num_threads(before); }
  int before = at::get_num_threads();
};

/// Logits of all slots by steps, [C, B, I, V], with the image tokens given.
Tensor by_steps(Decoder& decoder, const Tensor& images_BI) {
  std::vector<Tensor> logits;
  Tensor previous = at::zeros({images_BI.size(0)}, at::kLong);
  for (int64_t slot = 0; slot < images_BI.size(1); ++slot) {
    logits.push_back(decoder.step(slot, previous).clone());
    previous = images_BI.select(1, slot);
  }
  return at::stack(logits, 2);
}

/// Under one caption: [B, I, V].
Tensor by_steps(DecodingModel& model, const Tensor& caption_T, const Tensor& images_BI) {
  return by_steps(*model.start(caption_T.unsqueeze(0), images_BI.size(0)), images_BI)[0];
}

Tensor by_steps(const models::Prior& prior, const Tensor& images_BI, bool int8_weights = false) {
  FusedModel model(prior, int8_weights);
  return by_steps(model, some_caption(), images_BI);
}

/// Sizes that are no multiple of a register anywhere, in the paper's order; heads of 24 unless told otherwise.
std::unique_ptr<models::Prior> odd_prior(at::ScalarType dtype, double scale = 0.08, int64_t dim = 120) {
  return random_prior({.text_context = 4,
                       .text_vocab_size = 9,
                       .grid_size = 7,
                       .image_vocab_size = 301,
                       .dim = dim,
                       .num_heads = 5,
                       .num_layers = 6,
                       .conv_kernel = 5},
                      dtype, scale);
}

// Batches of one caption share its text: what its embeddings are later is not asked.
TEST(FusedModel, TheTextOfACaptionIsRunOnce) {
  const OneThread one_thread;
  const auto prior = odd_prior(at::kFloat);
  FusedModel model(*prior);
  const Tensor images = random_images(*prior, 3), other = some_caption().clamp_min(0);
  const Tensor expected = by_steps(model, some_caption(), images);
  const c10::NoGradGuard no_grad;
  prior->text_embedding.weight.tensor.mul_(2);
  for (const int64_t batch : {1, 3}) {
    EXPECT_TRUE(bitwise_equal(by_steps(model, some_caption(), images.slice(0, 0, batch)), expected.slice(0, 0, batch)));
  }
  EXPECT_TRUE(close_to(by_steps(model, other, images), in_full(*prior, other, images), 1e-5));
}

class FusedDecoding : public ::testing::TestWithParam<int64_t> {};

TEST_P(FusedDecoding, LogitsEqualFullRecomputation) {
  std::vector<PriorCase> cases = prior_cases();
  for (const PriorCase& c : option_cases()) cases.push_back(c);
  for (const PriorCase& c : cases) {
    const auto prior = random_prior(c, GetParam(), at::kFloat);
    const Tensor images = random_images(*prior, 3);
    EXPECT_TRUE(close_to(by_steps(*prior, images), in_full(*prior, some_caption(), images), 1e-5)) << c.name;
  }
}

INSTANTIATE_TEST_SUITE_P(Grids, FusedDecoding, ::testing::Values(1, 2, 3, 4, 6, 9));

TEST(FusedModel, LogitsOfOddSizesEqualTheOperators) {
  const auto prior = odd_prior(at::kFloat);
  const Tensor images = random_images(*prior, 8);
  OperatorModel operators(*prior);
  const Tensor steps = by_steps(*prior, images);
  EXPECT_TRUE(close_to(steps, by_steps(operators, some_caption(), images), 1e-5));
  EXPECT_TRUE(close_to(steps, in_full(*prior, some_caption(), images), 1e-5));
}

TEST(FusedModel, ATokenChangesExactlyTheSlotsThatMaySeeIt) {
  for (const PriorCase& c : prior_cases()) {
    for (const bool int8 : {false, true}) {
      const auto prior = random_prior(c, 4, at::kFloat);
      const Tensor images = random_images(*prior, 2), before = by_steps(*prior, images, int8);
      const Tensor reach = image_reach(*prior);
      for (int64_t slot = 1; slot < 16; ++slot) {  // slot holds token slot - 1
        Tensor changed = images.clone();
        changed[0][slot - 1] = (images[0][slot - 1] + 2).remainder(7);
        const Tensor differs = by_steps(*prior, changed, int8).ne(before).any(2);
        EXPECT_TRUE(at::equal(differs[0], reach.select(1, slot))) << c.name << " slot " << slot;
        EXPECT_FALSE(differs[1].any().item<bool>()) << c.name << ": candidates mix at slot " << slot;
      }
    }
  }
}

TEST(FusedModel, ACandidateIsBitwiseTheSameInEveryBatchAndOnEveryNumberOfThreads) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const bool int8 : {false, true}) {
      const auto prior = odd_prior(dtype);
      const Tensor images = random_images(*prior, 30);
      FusedModel model(*prior, int8);
      const Threads one(1);
      const Tensor together = by_steps(model, some_caption(), images);
      EXPECT_TRUE(bitwise_equal(by_steps(model, some_caption(), images.slice(0, 4, 5)), together.slice(0, 4, 5)));
      EXPECT_TRUE(bitwise_equal(by_steps(model, some_caption(), images.slice(0, 9, 20)), together.slice(0, 9, 20)));
      const Threads two(2);
      FusedModel another(*prior, int8);  // its text on two threads
      EXPECT_TRUE(bitwise_equal(by_steps(another, some_caption(), images), together));
      EXPECT_TRUE(bitwise_equal(by_steps(another, some_caption(), images.slice(0, 4, 5)), together.slice(0, 4, 5)));
    }
  }
}

TEST(FusedModel, Bf16IsNearF32) {
  for (const PriorCase& c : prior_cases()) {
    const auto prior = random_prior(c, 4, at::kBFloat16), exact = random_prior(c, 4, at::kFloat);
    const Tensor images = random_images(*prior, 3);
    const Tensor steps = by_steps(*prior, images);
    EXPECT_EQ(steps.scalar_type(), at::kFloat);
    EXPECT_TRUE(close_to(steps, in_full(*exact, some_caption(), images), 5e-2)) << c.name;
    EXPECT_FALSE(close_to(steps, in_full(*exact, some_caption(), images), 1e-5)) << c.name << " is not in bf16";
  }
  const auto prior = odd_prior(at::kBFloat16), exact = odd_prior(at::kFloat);
  const Tensor images = random_images(*prior, 3), expected = in_full(*exact, some_caption(), images);
  // Sums and residuals in f32: nearer than the operators, which round between them.
  OperatorModel operators(*prior);
  EXPECT_LT(relative_error(by_steps(*prior, images), expected), 1e-2);
  EXPECT_LT(relative_error(by_steps(*prior, images), expected),
            relative_error(by_steps(operators, some_caption(), images), expected));
}

/// New memory that LibTorch gives out is full of NaN.
class PoisonedMemory {
 public:
  PoisonedMemory() {
    at::globalContext().setDeterministicFillUninitializedMemory(true);
    at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/true);
  }
  ~PoisonedMemory() { at::globalContext().setDeterministicAlgorithms(false, false); }
};

TEST(FusedModel, NothingIsReadThatWasNeverWritten) {
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const int64_t dim : {120, 35}) {  // heads of 24 and of 7, whose last number has no partner
      const auto prior = odd_prior(dtype, 0.08, dim);
      const Tensor images = random_images(*prior, 3), expected = by_steps(*prior, images);
      const PoisonedMemory poisoned;
      ASSERT_TRUE(at::empty({3}).isnan().all().item<bool>());
      EXPECT_TRUE(bitwise_equal(by_steps(*prior, images), expected)) << dtype << " dim " << dim;
      EXPECT_TRUE(expected.isfinite().all().item<bool>());
    }
  }
}

TEST(FusedModel, Int8IsWithinAFewPercentOfF32) {
  const auto exact = odd_prior(at::kFloat);
  const Tensor images = random_images(*exact, 3);
  const Tensor logits = in_full(*exact, some_caption(), images).to(at::kDouble);
  const Tensor int8 = by_steps(*exact, images, /*int8_weights=*/true).to(at::kDouble);
  EXPECT_LT(relative_error(int8, logits), 2e-2);
  EXPECT_GT(relative_error(int8, logits), 1e-5) << "weights were not rounded";
  const Tensor p = at::log_softmax(logits, 2), q = at::log_softmax(int8, 2);
  EXPECT_LT((p.exp() * (p - q)).sum(2).mean().item<double>(), 5e-3);  // nats of KL divergence
}

TEST(FusedModel, SeveralCaptionsAreEachAsAlone) {
  const auto prior = odd_prior(at::kFloat);
  const Tensor images = random_images(*prior, 14), none = at::full_like(some_caption(), models::kPadToken);
  const Tensor captions = at::stack({some_caption(), none, at::tensor({1, 8, 3}, at::kLong)});
  FusedModel model(*prior);
  for (const int threads : {1, 2}) {
    const Threads some(threads);
    const Tensor together = by_steps(*model.start(captions, 14), images);
    for (int64_t c = 0; c < 3; ++c) {
      EXPECT_TRUE(bitwise_equal(by_steps(model, captions[c], images), together[c])) << c;
    }
    EXPECT_FALSE(bitwise_equal(together[0], together[1]));
  }
}

TEST(FusedModel, EverySlotSeesTheWholeCaption) {
  for (const PriorCase& c : prior_cases()) {
    const auto prior = random_prior(c, 3, at::kFloat);
    FusedModel model(*prior);
    const Tensor images = random_images(*prior, 1), before = by_steps(model, some_caption(), images);
    for (int64_t token = 0; token < 3; ++token) {
      Tensor caption = some_caption();
      caption[token] = 7;
      EXPECT_TRUE(by_steps(model, caption, images).ne(before).any(2).all().item<bool>()) << c.name << token;
    }
  }
}

TEST(FusedModel, LeftoversOfAnEarlierPassAreNeverRead) {
  for (const PriorCase& c : prior_cases()) {
    const auto prior = random_prior(c, 4, at::kFloat);
    FusedModel model(*prior);
    const auto used = model.start(some_caption().unsqueeze(0), 2);
    by_steps(*used, random_images(*prior, 2, 1));
    const Tensor images = random_images(*prior, 2, 2);
    EXPECT_TRUE(bitwise_equal(by_steps(*used, images)[0], by_steps(*prior, images))) << c.name;
  }
}

TEST(FusedModel, ACandidateMadeManyGoesOnAsItself) {
  for (const PriorCase& c : prior_cases()) {
    const auto prior = random_prior(c, 4, at::kFloat);
    FusedModel model(*prior);
    const Tensor captions = at::stack({some_caption(), at::full_like(some_caption(), models::kPadToken)});
    Tensor images = random_images(*prior, 3);
    images.slice(1, 0, 9).copy_(images[0].slice(0, 0, 9).expand({3, 9}).clone());
    const Tensor expected = by_steps(*model.start(captions, 3), images);
    const auto decoder = model.start(captions, 1);
    for (int64_t slot = 0; slot < 16; ++slot) {
      if (slot == 10) decoder->expand(3);  // slot 10 holds token 9, the first that differs
      const int64_t batch = slot < 10 ? 1 : 3;
      const Tensor tokens =
          slot == 0 ? at::zeros({1}, at::kLong) : images.slice(0, 0, batch).select(1, slot - 1).contiguous();
      EXPECT_TRUE(bitwise_equal(decoder->step(slot, tokens), expected.select(2, slot).slice(1, 0, batch))) << c.name;
    }
    EXPECT_THROW(decoder->expand(2), c10::ValueError);
  }
}

TEST(FusedModel, BytesAreWhatAStepReads) {
  const auto prior = odd_prior(at::kFloat);
  const int64_t matrices = 6 * 12 * 120 * 120, head = 301 * 120;
  const int64_t biases = 6 * 9 * 120 + 301;
  // Columns are padded to 16: 120 to 128, 301 to 304; those of 360 and 480 to 368 and 480.
  const int64_t padding = 6 * (8 * 120 + 8 * 120 + 8 * 480) + 3 * 120;
  EXPECT_EQ(FusedModel(*prior).weight_bytes(), 4 * (matrices + head + padding + biases));
  EXPECT_EQ(FusedModel(*prior).cache_type(), at::kFloat);
  EXPECT_EQ(FusedModel(*prior, true).cache_type(), at::kBFloat16);
  // A scale for each output, and a sum for each padded column and stretch: every depth (120 or 480) is one stretch.
  const int64_t sums = 6 * (368 + 128 + 480 + 128) + 304;
  // The depth is padded to 64: 120 to 128, 480 to 512.
  const int64_t deeper = 6 * (8 * (368 + 128 + 480) + 32 * 128) + 8 * 304;
  EXPECT_EQ(FusedModel(*prior, true).weight_bytes(), matrices + head + padding + deeper + 8 * biases + 4 * sums);
  const auto row = random_prior({"row", {layers::AttentionKind::kRow}}, 2, at::kFloat);
  // Slots of a 2 x 2 grid see 1, 2, 3 and 3 slots, and 4 of text.
  EXPECT_DOUBLE_EQ(FusedModel(*row).cache_bytes_per_step(), 2 * 12 * 4 * (4 + 9.0 / 4));
}

TEST(FusedModel, WhatDoesNotFitIsRefused) {
  const auto prior = random_prior(prior_cases().front(), 2, at::kFloat);
  FusedModel model(*prior);
  const auto decoder = model.start(some_caption().unsqueeze(0), 2);
  const Tensor tokens = at::zeros({2}, at::kLong);
  EXPECT_THROW(decoder->step(1, tokens), c10::ValueError) << "out of order";
  EXPECT_THROW(decoder->step(0, at::zeros({3}, at::kLong)), c10::ValueError);
  EXPECT_THROW(decoder->step(0, at::zeros({2}, at::kInt)), c10::ValueError);
  decoder->step(0, tokens);
  EXPECT_THROW(decoder->step(1, at::full({2}, 7, at::kLong)), c10::ValueError) << "no such code";
  EXPECT_THROW(decoder->step(1, at::full({2}, -1, at::kLong)), c10::ValueError);
  for (int64_t slot = 1; slot < 4; ++slot) decoder->step(slot, tokens);
  EXPECT_THROW(decoder->step(4, tokens), c10::ValueError);
  EXPECT_THROW(model.start(at::zeros({1, 4}, at::kLong), 1), c10::ValueError);
  EXPECT_THROW(model.start(at::zeros({3}, at::kLong), 1), c10::ValueError);
  EXPECT_THROW(model.start(some_caption().unsqueeze(0), 0), c10::ValueError);
  const auto in_f64 = random_prior(prior_cases().front(), 2, at::kDouble);
  EXPECT_FALSE(FusedModel::fits(*in_f64));
  EXPECT_THROW(FusedModel{*in_f64}, c10::ValueError);
}

}  // namespace
}  // namespace dalle::generation

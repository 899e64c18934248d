// Decoding with a cache is the whole model, slot by slot: the same logits, and no slot sees what its layers may not.
#include "dalle/generation/prior_decoder.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "generation/random_prior.h"
#include "support/tensor_matchers.h"

namespace dalle::generation {
namespace {

using testing::bitwise_equal;
using testing::close_to;

/// Logits of all slots by steps, [B, I, V], with the image tokens given.
Tensor by_steps(PriorDecoder& decoder, const Tensor& images_BI) {
  std::vector<Tensor> logits;
  Tensor previous = at::zeros({images_BI.size(0)}, at::kLong);
  for (int64_t slot = 0; slot < images_BI.size(1); ++slot) {
    logits.push_back(decoder.step(slot, previous));
    previous = images_BI.select(1, slot);
  }
  return at::stack(logits, 1);
}

Tensor by_steps(const models::Prior& prior, const Tensor& caption_T, const Tensor& images_BI) {
  PriorDecoder decoder(prior, caption_T, images_BI.size(0));
  return by_steps(decoder, images_BI);
}

class PriorDecoding : public ::testing::TestWithParam<int64_t> {};
class PriorDecodingCausality : public ::testing::TestWithParam<int64_t> {};

TEST_P(PriorDecoding, LogitsEqualFullRecomputation) {
  const OneThread one_thread;
  for (const PriorCase& c : prior_cases()) {
    for (const auto& [dtype, tolerance] : {std::pair{at::kDouble, 1e-10}, {at::kFloat, 1e-5}}) {
      const auto prior = random_prior(c, GetParam(), dtype);
      const Tensor images = random_images(*prior, 3);
      const Tensor steps = by_steps(*prior, some_caption(), images);
      EXPECT_EQ(steps.scalar_type(), dtype);
      EXPECT_TRUE(close_to(steps, in_full(*prior, some_caption(), images), tolerance)) << c.name << " " << dtype;
    }
  }
}

TEST_P(PriorDecodingCausality, ATokenChangesExactlyTheSlotsThatMaySeeIt) {
  const OneThread one_thread;
  for (const PriorCase& c : prior_cases()) {
    for (const auto dtype : {at::kDouble, at::kFloat}) {
      const auto prior = random_prior(c, GetParam(), dtype);
      const Tensor images = random_images(*prior, 2), before = by_steps(*prior, some_caption(), images);
      const Tensor reach = image_reach(*prior);
      for (int64_t slot = 1; slot < prior->config().image_context(); ++slot) {  // slot holds token slot - 1
        Tensor changed = images.clone();
        changed[0][slot - 1] = (images[0][slot - 1] + 2).remainder(7);
        const Tensor differs = by_steps(*prior, some_caption(), changed).ne(before).any(2);
        EXPECT_TRUE(at::equal(differs[0], reach.select(1, slot))) << c.name << " " << dtype << " slot " << slot;
        EXPECT_FALSE(differs[1].any().item<bool>()) << c.name << ": candidates mix at slot " << slot;
      }
    }
  }
}

TEST_P(PriorDecodingCausality, NoSlotSeesItsOwnTokenOrLaterOnes) {
  for (const PriorCase& c : prior_cases()) {
    const auto prior = random_prior(c, GetParam(), at::kFloat);
    const Tensor reach = image_reach(*prior);
    EXPECT_EQ(reach.triu(1).sum().item<int64_t>(), 0) << c.name;  // slot j + 1 holds token j
    const Tensor images = random_images(*prior, 1), before = by_steps(*prior, some_caption(), images);
    for (int64_t token = 0; token < prior->config().image_context(); ++token) {
      Tensor later = random_images(*prior, 1, 5);
      later.slice(1, 0, token).copy_(images.slice(1, 0, token));
      EXPECT_TRUE(
          bitwise_equal(by_steps(*prior, some_caption(), later).slice(1, 0, token + 1), before.slice(1, 0, token + 1)))
          << c.name << " token " << token;
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Grids, PriorDecoding, ::testing::Values(1, 2, 3, 4, 6));
INSTANTIATE_TEST_SUITE_P(Grids, PriorDecodingCausality, ::testing::Values(1, 2, 4));

TEST(PriorDecoder, TheFirstSlotIgnoresItsToken) {
  const auto prior = random_prior(prior_cases().back(), 3, at::kFloat);
  PriorDecoder a(*prior, some_caption(), 2), b(*prior, some_caption(), 2);
  EXPECT_TRUE(bitwise_equal(a.step(0, at::tensor({0, 0}, at::kLong)), b.step(0, at::tensor({3, 6}, at::kLong))));
}

TEST(PriorDecoder, LeftoversOfAnEarlierPassAreNeverRead) {
  for (const PriorCase& c : prior_cases()) {
    const auto prior = random_prior(c, 4, at::kFloat);
    PriorDecoder used(*prior, some_caption(), 2);
    by_steps(used, random_images(*prior, 2, 1));
    const Tensor images = random_images(*prior, 2, 2);
    EXPECT_TRUE(bitwise_equal(by_steps(used, images), by_steps(*prior, some_caption(), images))) << c.name;
  }
}

TEST(PriorDecoder, EverySlotSeesTheWholeCaption) {
  for (const PriorCase& c : prior_cases()) {
    const auto prior = random_prior(c, 3, at::kFloat);
    const Tensor images = random_images(*prior, 1), before = by_steps(*prior, some_caption(), images);
    for (int64_t token = 0; token < 3; ++token) {
      Tensor caption = some_caption();
      caption[token] = 7;
      EXPECT_TRUE(by_steps(*prior, caption, images).ne(before).any(2).all().item<bool>())
          << c.name << " token " << token;
    }
  }
}

TEST(PriorDecoder, Bf16IsNearFullRecomputation) {
  for (const PriorCase& c : prior_cases()) {
    const auto prior = random_prior(c, 4, at::kBFloat16), exact = random_prior(c, 4, at::kFloat);
    const Tensor images = random_images(*prior, 3);
    const Tensor steps = by_steps(*prior, some_caption(), images);
    EXPECT_EQ(steps.scalar_type(), at::kFloat);
    EXPECT_TRUE(close_to(steps, in_full(*prior, some_caption(), images), 5e-2)) << c.name;
    EXPECT_TRUE(close_to(steps, in_full(*exact, some_caption(), images), 5e-2)) << c.name;
  }
}

TEST(PriorDecoder, ACandidateMadeManyGoesOnAsItself) {
  for (const PriorCase& c : prior_cases()) {
    const auto prior = random_prior(c, 4, at::kDouble);
    const Tensor images = random_images(*prior, 1).expand({3, -1}).contiguous();
    const Tensor expected = by_steps(*prior, some_caption(), images);
    PriorDecoder decoder(*prior, some_caption(), 1);
    for (int64_t slot = 0; slot < 16; ++slot) {
      if (slot == 9) decoder.expand(3);
      const Tensor tokens =
          slot == 0 ? at::zeros({1}, at::kLong) : images.slice(0, 0, decoder.batch()).select(1, slot - 1);
      const Tensor logits = decoder.step(slot, tokens);
      EXPECT_TRUE(close_to(logits, expected.select(1, slot).slice(0, 0, decoder.batch()), 1e-12)) << c.name << slot;
    }
    EXPECT_THROW(decoder.expand(2), c10::ValueError);
  }
}

TEST(PriorDecoder, SlotsAndCaptionsThatDoNotFitAreRefused) {
  const auto prior = random_prior(prior_cases().front(), 2, at::kFloat);
  PriorDecoder decoder(*prior, some_caption(), 2);
  EXPECT_EQ(decoder.batch(), 2);
  EXPECT_THROW(decoder.step(4, at::zeros({2}, at::kLong)), c10::ValueError);
  EXPECT_THROW(decoder.step(-1, at::zeros({2}, at::kLong)), c10::ValueError);
  EXPECT_THROW(PriorDecoder(*prior, at::zeros({4}, at::kLong), 1), c10::ValueError);
}

}  // namespace
}  // namespace dalle::generation

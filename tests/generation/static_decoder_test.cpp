// Decoding by steps of fixed shapes is the whole model, slot by slot; on a GPU, where there is one, by a recorded graph.
#include "dalle/generation/static_decoder.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "dalle/generation/prior_decoder.h"
#include "generation/random_prior.h"
#include "support/tensor_matchers.h"

namespace dalle::generation {
namespace {

using testing::bitwise_equal;
using testing::close_to;

/// Logits of all slots by steps, [C, B, I, V], with the image tokens given.
Tensor by_steps(Decoder& decoder, const Tensor& images_BI) {
  std::vector<Tensor> logits;
  Tensor previous = at::zeros({images_BI.size(0)}, images_BI.options());
  for (int64_t slot = 0; slot < images_BI.size(1); ++slot) {
    logits.push_back(decoder.step(slot, previous).clone());
    previous = images_BI.select(1, slot);
  }
  return at::stack(logits, 2);
}

Tensor captions_of_two() { return at::stack({some_caption(), at::full({3}, models::kPadToken, at::kLong)}); }

class StaticDecoding : public ::testing::TestWithParam<int64_t> {};

TEST_P(StaticDecoding, LogitsEqualFullRecomputationForEachCaption) {
  const OneThread one_thread;
  for (const PriorCase& c : prior_cases()) {
    for (const auto& [dtype, tolerance] : {std::pair{at::kDouble, 1e-10}, {at::kFloat, 1e-5}}) {
      const auto prior = random_prior(c, GetParam(), dtype);
      const Tensor images = random_images(*prior, 3), captions = captions_of_two();
      const Tensor steps = by_steps(*StaticModel(*prior).start(captions, 3), images);
      EXPECT_EQ(steps.scalar_type(), dtype);
      for (int64_t text = 0; text < 2; ++text) {
        EXPECT_TRUE(close_to(steps[text], in_full(*prior, captions[text], images), tolerance))
            << c.name << " " << dtype;
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Grids, StaticDecoding, ::testing::Values(1, 2, 3, 4, 6));

TEST(StaticDecoder, OptionsOfTheModelAreTheModels) {
  const OneThread one_thread;
  for (const PriorCase& c : option_cases()) {
    const auto prior = random_prior(c, 3, at::kDouble);
    const Tensor images = random_images(*prior, 2);
    const Tensor steps = by_steps(*StaticModel(*prior).start(some_caption().unsqueeze(0), 2), images);
    EXPECT_TRUE(close_to(steps[0], in_full(*prior, some_caption(), images), 1e-10)) << c.name;
  }
}

TEST(StaticDecoder, OneCandidateExpandsToMany) {
  const OneThread one_thread;
  const auto prior = random_prior(prior_cases().back(), 4, at::kDouble);
  StaticModel model(*prior);
  Tensor images = random_images(*prior, 3);
  images.slice(1, 0, 9) = images.slice(0, 0, 1).slice(1, 0, 9);
  const Tensor expected = by_steps(*model.start(captions_of_two(), 3), images);
  const auto decoder = model.start(captions_of_two(), 1);
  for (int64_t slot = 0; slot < 16; ++slot) {
    if (slot == 10) decoder->expand(3);  // slot 10 holds token 9, the first that differs
    const int64_t batch = slot < 10 ? 1 : 3;
    const Tensor tokens =
        slot == 0 ? at::zeros({1}, at::kLong) : images.slice(0, 0, batch).select(1, slot - 1).contiguous();
    EXPECT_TRUE(close_to(decoder->step(slot, tokens), expected.select(2, slot).slice(1, 0, batch), 1e-12)) << slot;
  }
  EXPECT_THROW(decoder->expand(2), c10::ValueError);
}

// Batches of one caption share its text: what its embeddings are later is not asked.
TEST(StaticDecoder, TheTextOfACaptionIsRunOnce) {
  const OneThread one_thread;
  const auto prior = random_prior(prior_cases().back(), 3, at::kDouble);
  StaticModel model(*prior);
  const Tensor images = random_images(*prior, 3), captions = captions_of_two();
  const Tensor expected = by_steps(*model.start(captions, 3), images);
  const c10::NoGradGuard no_grad;
  prior->text_embedding.weight.tensor.mul_(2);
  for (const int64_t batch : {1, 3}) {
    const Tensor steps = by_steps(*model.start(captions.clone(), batch), images.slice(0, 0, batch));
    EXPECT_TRUE(close_to(steps, expected.slice(1, 0, batch), 1e-12)) << batch;
  }
  const Tensor other = captions.slice(0, 0, 1) + 1;
  EXPECT_TRUE(close_to(by_steps(*model.start(other, 3), images)[0], in_full(*prior, other[0], images), 1e-10));
}

TEST(StaticDecoder, ItStartsAgainAtSlotZeroWhateverItsToken) {
  const OneThread one_thread;
  const auto prior = random_prior(prior_cases().back(), 3, at::kFloat);
  const Tensor images = random_images(*prior, 2);
  StaticModel model(*prior);
  const auto decoder = model.start(captions_of_two(), 2);
  const Tensor first = by_steps(*decoder, images);
  EXPECT_TRUE(bitwise_equal(by_steps(*decoder, images), first));
  EXPECT_TRUE(bitwise_equal(decoder->step(0, at::tensor({3, 6}, at::kLong)), first.select(2, 0)));
  EXPECT_THROW(decoder->step(9, images.select(1, 0)), c10::ValueError);
}

// As exact as bf16 with f32 sums allows: of numbers of size 1, rounded to 8 bits some ten times in a row.
TEST(StaticDecoder, Bf16IsNearF32) {
  const OneThread one_thread;
  const Tensor captions = captions_of_two();
  const auto exact = random_prior(prior_cases().back(), 3, at::kFloat),
             prior = random_prior(prior_cases().back(), 3, at::kBFloat16);
  const Tensor images = random_images(*prior, 2);
  const Tensor expected = by_steps(*StaticModel(*exact).start(captions, 2), images);
  StaticModel model(*prior);
  const Tensor logits = by_steps(*model.start(captions, 2), images);
  EXPECT_EQ(logits.scalar_type(), at::kFloat);
  EXPECT_LT((logits - expected).norm().item<double>(), 0.03 * expected.norm().item<double>());
  EXPECT_GT((logits - expected).norm().item<double>(), 0);
  EXPECT_EQ(model.candidate_bytes(), bytes_per_candidate(prior->config(), at::kBFloat16));
}

// The prior whose matrices were rounded to int8 and back beforehand.
TEST(StaticDecoder, Int8WeightsAreThoseOfARoundedPrior) {
  const OneThread one_thread;
  for (const bool tied : {false, true}) {
    PriorCase c = prior_cases().back();
    c.tied_heads = tied;
    const auto prior = random_prior(c, 3, at::kFloat), rounded = random_prior(c, 3, at::kFloat);
    const Tensor images = random_images(*prior, 2), captions = captions_of_two();
    for (const auto& [name, parameter] : rounded->named_parameters()) {
      const bool is_matrix = name.starts_with("transformer.") || name == "image_head.weight";
      if (!is_matrix || parameter->tensor.dim() != 2) continue;
      const layers::Int8Matrix int8 = layers::quantise_outputs(parameter->tensor);
      parameter->tensor = int8.weight_NK.to(at::kFloat) * int8.scale_N.unsqueeze(1);
    }
    StaticModel model(*prior, /*int8_weights=*/true);
    const Tensor logits = by_steps(*model.start(captions, 2), images);
    if (!tied) {  // a tied head is rounded, the embedding that it shares is not
      EXPECT_TRUE(close_to(logits, by_steps(*StaticModel(*rounded).start(captions, 2), images), 1e-4));
    }
    const Tensor expected = by_steps(*StaticModel(*prior).start(captions, 2), images);
    EXPECT_LT((logits - expected).norm().item<double>(), 0.03 * expected.norm().item<double>());
    EXPECT_FALSE(at::equal(logits, expected));
  }
}

std::vector<std::pair<PriorCase, bool>> cases_with_int8() {
  std::vector<std::pair<PriorCase, bool>> cases{{prior_cases().back(), true}};
  for (const PriorCase& c : prior_cases()) cases.emplace_back(c, false);
  return cases;
}

TEST(StaticDecoder, AGraphOnAGpuGivesTheLogitsOfTheCpu) {
  if (!at::hasCUDA()) GTEST_SKIP() << "no GPU";
  const at::Device gpu(at::kCUDA, 0);
  for (const auto& [c, int8] : cases_with_int8()) {
    const auto prior = random_prior(c, 4, at::kFloat), on_gpu = random_prior(c, 4, at::kFloat);
    for (const auto& [name, parameter] : on_gpu->named_parameters()) parameter->tensor = parameter->tensor.to(gpu);
    const Tensor images = random_images(*prior, 3), captions = captions_of_two();
    const Tensor expected = by_steps(*StaticModel(*prior, int8).start(captions, 3), images);
    StaticModel model(*on_gpu, int8);
    const auto decoder = model.start(captions.to(gpu), 3);
    for (int pass = 0; pass < 2; ++pass) {
      EXPECT_TRUE(close_to(by_steps(*decoder, images.to(gpu)).cpu(), expected, 1e-3)) << c.name << " pass " << pass;
    }
  }
}

}  // namespace
}  // namespace dalle::generation

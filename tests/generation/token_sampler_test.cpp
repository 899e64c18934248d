// Sampling with a cache against the obvious loop: the whole model again for every token of every candidate, one by one.
#include "dalle/generation/token_sampler.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <numeric>

#include "generation/random_prior.h"
#include "support/tensor_matchers.h"

namespace dalle::generation {
namespace {

using testing::close_to;

CaptionPrompt some_prompt() { return {.caption = "a red cat", .ids_T = some_caption(), .image_prompt_n = {}}; }

/// Logits of the next token of one image, [1, V].
Tensor next_logits(const models::Prior& prior, const Tensor& caption_T, const Tensor& tokens_n) {
  const Tensor logits = prior.forward(caption_T.unsqueeze(0), tokens_n.unsqueeze(0)).image_logits_BIV;
  return logits.select(1, tokens_n.size(0));
}

/// One candidate's tokens [I], by full recomputation at every position and the noise of the definition in random.h.
Tensor slow_sample(const models::Prior& prior, const CaptionPrompt& prompt, int64_t candidate,
                   const SamplingOptions& options) {
  const c10::NoGradGuard no_grad;
  const int64_t slots = prior.config().image_context(), vocab = prior.config().image_vocab_size;
  const auto number = static_cast<uint64_t>(candidate);
  const RandomKey key = random_key(options.seed, Purpose::kSampling, stable_hash(prompt.caption), number);
  const Tensor noise_IV = gumbel_rows({{key}}, slots * vocab, at::kCPU).view({slots, vocab});
  const Tensor nothing = at::full_like(prompt.ids_T, models::kPadToken);
  Tensor tokens = prompt.image_prompt_n.defined() ? prompt.image_prompt_n.clone() : at::empty({0}, at::kLong);
  for (int64_t slot = tokens.size(0); slot < slots; ++slot) {
    const Tensor conditional = next_logits(prior, prompt.ids_T, tokens), null = next_logits(prior, nothing, tokens);
    const Tensor logits = null + options.guidance * (conditional - null);
    tokens = at::cat({tokens, (filter_logits(logits, options.filter) + noise_IV[slot]).argmax(1)});
  }
  return tokens;
}

Tensor slow_samples(const models::Prior& prior, const CaptionPrompt& prompt, const std::vector<int64_t>& candidates,
                    const SamplingOptions& options) {
  std::vector<Tensor> rows;
  for (const int64_t candidate : candidates) rows.push_back(slow_sample(prior, prompt, candidate, options));
  return at::stack(rows);
}

const std::vector<int64_t> kCandidates{0, 1, 7, 1'000'000};

TEST(TokenSampler, EqualsFullRecomputationTokenForToken) {
  const OneThread one_thread;
  for (const PriorCase& c : prior_cases()) {
    for (const auto dtype : {at::kDouble, at::kFloat}) {
      const auto prior = random_prior(c, c.name.starts_with("conv") ? 6 : 4, dtype);  // wider than the kernel, and not
      const SamplingOptions options{.seed = 3};
      const std::vector<int64_t> candidates{0, 7};
      const Tensor expected = slow_samples(*prior, some_prompt(), candidates, options);
      EXPECT_TRUE(at::equal(sample_tokens(*prior, some_prompt(), candidates, options).tokens_BI, expected))
          << c.name << " " << dtype;
      EXPECT_FALSE(at::equal(expected[0], expected[1])) << c.name;
    }
  }
}

TEST(TokenSampler, FiltersAndGuidanceEqualTheFormula) {
  const OneThread one_thread;
  for (const auto dtype : {at::kDouble, at::kFloat}) {
    const auto prior = random_prior(prior_cases().back(), 3, dtype);
    const Tensor plain = sample_tokens(*prior, some_prompt(), kCandidates, {.seed = 3}).tokens_BI;
    for (const SamplingOptions& options :
         {SamplingOptions{.filter = {.temperature = 0.5}, .seed = 3},
          {.filter = {.temperature = 2, .top_k = 3}, .seed = 3},
          {.filter = {.top_p = 0.7}, .seed = 3},
          {.guidance = 3, .seed = 3},
          {.guidance = 0.5, .seed = 3},
          {.filter = {.temperature = 0.8, .top_k = 5, .top_p = 0.9}, .guidance = 1.5, .seed = 3},
          {.seed = 4}}) {
      const Tensor tokens = sample_tokens(*prior, some_prompt(), kCandidates, options).tokens_BI;
      EXPECT_TRUE(at::equal(tokens, slow_samples(*prior, some_prompt(), kCandidates, options)));
      EXPECT_FALSE(at::equal(tokens, plain));
    }
  }
}

TEST(TokenSampler, GuidanceZeroForgetsTheCaption) {
  const auto prior = random_prior(prior_cases().back(), 4, at::kDouble);
  CaptionPrompt empty = some_prompt();
  empty.ids_T = at::full_like(empty.ids_T, models::kPadToken);  // the same words name the noise
  EXPECT_TRUE(at::equal(sample_tokens(*prior, some_prompt(), kCandidates, {.guidance = 0}).tokens_BI,
                        sample_tokens(*prior, empty, kCandidates, {}).tokens_BI));
}

TEST(TokenSampler, ACandidateDoesNotDependOnItsBatch) {
  const auto prior = random_prior(prior_cases().back(), 4, at::kDouble);
  const auto draw = [&](const std::vector<int64_t>& candidates) {
    return sample_tokens(*prior, some_prompt(), candidates, {.seed = 1}).tokens_BI;
  };
  const Tensor together = draw({4, 5, 6}), turned = draw({6, 4, 5}), twice = draw({5, 5});
  for (const int64_t i : {0, 1, 2}) {
    EXPECT_TRUE(at::equal(draw({4 + i})[0], together[i])) << i;
    EXPECT_TRUE(at::equal(turned[(i + 1) % 3], together[i])) << i;
  }
  EXPECT_TRUE(at::equal(twice, together[1].expand({2, -1})));
}

// PAPER 2.6 draws 512 candidates a caption. On the CPU a candidate's tokens depend on its number alone: in f32, bf16 and int8,
// for any batch size and number of threads.
TEST(TokenSampler, All512CandidatesAreTheSameForAnyBatchSizeAndNumberOfThreads) {
  const models::PriorConfig config{.text_context = 4,
                                   .text_vocab_size = 9,
                                   .grid_size = 4,
                                   .image_vocab_size = 300,
                                   .dim = 64,
                                   .num_heads = 2,
                                   .num_layers = 4,
                                   .conv_kernel = 5};
  const OneThread restores;
  for (const auto dtype : {at::kFloat, at::kBFloat16}) {
    for (const bool int8 : {false, true}) {
      const auto prior = random_prior(config, dtype, 0.1);
      TokenSampler sampler(*prior, {.int8_weights = int8});
      const auto draw = [&](int64_t batch_size, int threads, int64_t count) {
        at::set_num_threads(threads);
        std::vector<Tensor> batches;
        for (int64_t first = 0; first < count; first += batch_size) {
          std::vector<int64_t> numbers(static_cast<size_t>(std::min(batch_size, count - first)));
          std::iota(numbers.begin(), numbers.end(), first);
          batches.push_back(sampler.draw(some_prompt(), numbers, {.seed = 1}).tokens_BI);
        }
        return at::cat(batches);
      };
      const int64_t count = dtype == at::kFloat && !int8 ? 512 : 96;
      const Tensor all = draw(count, 1, count);
      const auto equal = [&](const Tensor& tokens) { return at::equal(tokens, all.slice(0, 0, tokens.size(0))); };
      EXPECT_TRUE(equal(draw(count, 2, count)));
      EXPECT_TRUE(equal(draw(64, 1, count)));
      EXPECT_TRUE(equal(draw(33, 2, count)));
      EXPECT_TRUE(equal(draw(7, 1, count)));
      EXPECT_TRUE(equal(draw(1, 1, count)));
      EXPECT_TRUE(equal(draw(1, 2, 4)));
      EXPECT_GT(std::get<0>(at::_unique(all)).numel(), 250) << "candidates hardly differ";
    }
  }
}

TEST(TokenSampler, FusedAndOperatorsDrawTheSameTokensInF32) {
  const OneThread one_thread;
  std::vector<PriorCase> cases = prior_cases();
  for (const PriorCase& c : option_cases()) cases.push_back(c);
  for (const PriorCase& c : cases) {
    const auto prior = random_prior(c, 6, at::kFloat);
    CaptionPrompt prompt = some_prompt();
    for (const int64_t primed : {0, 13}) {
      if (primed > 0) prompt.image_prompt_n = random_images(*prior, 1, 8)[0].slice(0, 0, primed);
      for (const SamplingOptions& options :
           {SamplingOptions{.seed = 3}, {.filter = {.temperature = 0.8, .top_k = 5, .top_p = 0.9}, .guidance = 1.5}}) {
        const auto fused = sample_tokens(*prior, prompt, kCandidates, options);
        const auto reference = sample_tokens(*prior, prompt, kCandidates, options, {}, {.by_operators = true});
        EXPECT_TRUE(at::equal(fused.tokens_BI, reference.tokens_BI)) << c.name << " " << primed;
        EXPECT_TRUE(close_to(fused.log_likelihood_B, reference.log_likelihood_B, 1e-5)) << c.name << " " << primed;
      }
    }
  }
}

TEST(TokenSampler, ASamplerGoesFromCaptionToCaption) {
  const auto prior = random_prior(prior_cases().back(), 4, at::kFloat);
  TokenSampler sampler(*prior);
  CaptionPrompt other{.caption = "a blue dog", .ids_T = at::tensor({1, 8, 3}, at::kLong), .image_prompt_n = {}};
  for (const CaptionPrompt& prompt : {some_prompt(), other, some_prompt()}) {
    for (const double guidance : {1.0, 2.0}) {
      const SamplingOptions options{.guidance = guidance};
      EXPECT_TRUE(at::equal(sampler.draw(prompt, kCandidates, options).tokens_BI,
                            sample_tokens(*prior, prompt, kCandidates, options).tokens_BI));
    }
  }
}

TEST(TokenSampler, SeedAndCaptionTextNameTheNoise) {
  const auto prior = random_prior(prior_cases().front(), 4, at::kDouble);
  const Tensor tokens = sample_tokens(*prior, some_prompt(), kCandidates, {.seed = 1}).tokens_BI;
  EXPECT_TRUE(at::equal(sample_tokens(*prior, some_prompt(), kCandidates, {.seed = 1}).tokens_BI, tokens));
  EXPECT_FALSE(at::equal(sample_tokens(*prior, some_prompt(), kCandidates, {.seed = 2}).tokens_BI, tokens));
  CaptionPrompt other = some_prompt();
  other.caption = "a red dog";
  EXPECT_FALSE(at::equal(sample_tokens(*prior, other, kCandidates, {.seed = 1}).tokens_BI, tokens));
}

TEST(TokenSampler, DrawsFollowTheModelsProbabilities) {
  const auto prior = random_prior(prior_cases().front(), 1, at::kDouble);
  std::vector<int64_t> candidates(20'000);
  std::iota(candidates.begin(), candidates.end(), 0);
  const c10::NoGradGuard no_grad;
  for (const double temperature : {1.0, 0.5}) {
    const SamplingOptions options{.filter = {.temperature = temperature}};
    const Tensor tokens = sample_tokens(*prior, some_prompt(), candidates, options).tokens_BI;
    const Tensor logits = next_logits(*prior, some_caption(), at::empty({0}, at::kLong))[0];
    const Tensor expected = at::softmax(logits / temperature, 0) * 20'000;
    const Tensor counts = at::bincount(tokens.flatten(), {}, 7).to(at::kDouble);
    EXPECT_LT(((counts - expected).square() / expected).sum().item<double>(), 22.46);  // 99.9 %, 6 degrees of freedom
  }
}

TEST(TokenSampler, AnImagePromptIsKeptAndContinued) {
  const auto prior = random_prior(prior_cases().back(), 4, at::kDouble);
  const Tensor image = random_images(*prior, 1, 8)[0];
  const Tensor free = sample_tokens(*prior, some_prompt(), kCandidates, {}).tokens_BI;
  for (const int64_t count : {1, 4, 9, 16}) {
    CaptionPrompt prompt = some_prompt();
    prompt.image_prompt_n = image.slice(0, 0, count);
    const Tensor tokens = sample_tokens(*prior, prompt, kCandidates, {}).tokens_BI;
    EXPECT_TRUE(at::equal(tokens.slice(1, 0, count), prompt.image_prompt_n.expand({4, count}))) << count;
    EXPECT_TRUE(at::equal(tokens, slow_samples(*prior, prompt, kCandidates, {}))) << count;
    EXPECT_FALSE(at::equal(tokens, free)) << count;
  }
}

TEST(TokenSampler, LogLikelihoodIsTheUnfilteredModels) {
  const OneThread one_thread;
  for (const auto& [dtype, tolerance] : {std::pair{at::kDouble, 1e-10}, {at::kFloat, 1e-5}}) {
    const auto prior = random_prior(prior_cases().back(), 4, dtype);
    CaptionPrompt prompt = some_prompt();
    for (const SamplingOptions& options :
         {SamplingOptions{}, {.filter = {.temperature = 0.5, .top_k = 2, .top_p = 0.5}}, {.guidance = 2}}) {
      const auto [tokens, log_likelihood] = sample_tokens(*prior, prompt, kCandidates, options);
      EXPECT_EQ(log_likelihood.scalar_type(), at::kDouble);
      EXPECT_TRUE(close_to(log_likelihood, image_log_likelihood(*prior, prompt.ids_T, tokens), tolerance));
    }
    prompt.image_prompt_n = random_images(*prior, 1, 8)[0].slice(0, 0, 5);  // counted like drawn ones
    const auto [tokens, log_likelihood] = sample_tokens(*prior, prompt, kCandidates, {});
    EXPECT_TRUE(close_to(log_likelihood, image_log_likelihood(*prior, prompt.ids_T, tokens), tolerance));
  }
}

TEST(TokenSampler, ImageLogLikelihoodIsTheSumOverTokens) {
  const auto prior = random_prior(prior_cases().back(), 3, at::kDouble);
  const Tensor images = random_images(*prior, 2);
  const Tensor likelihood = image_log_likelihood(*prior, some_caption(), images);
  const c10::NoGradGuard no_grad;
  for (const int64_t image : {0, 1}) {
    double expected = 0;
    for (int64_t slot = 0; slot < 9; ++slot) {
      const Tensor p = at::softmax(next_logits(*prior, some_caption(), images[image].slice(0, 0, slot))[0], 0);
      expected += std::log(p[images[image][slot].item<int64_t>()].item<double>());
    }
    EXPECT_NEAR(likelihood[image].item<double>(), expected, 1e-10 * std::abs(expected));
  }
}

TEST(TokenSampler, CallbackCountsSlotsAndMayInterrupt) {
  const auto prior = random_prior(prior_cases().front(), 2, at::kFloat);
  std::vector<int64_t> calls;
  sample_tokens(*prior, some_prompt(), kCandidates, {}, [&](int64_t done) {
    calls.push_back(done);
    return true;
  });
  EXPECT_THAT(calls, ::testing::ElementsAre(1, 2, 3, 4));
  calls.clear();
  EXPECT_THROW(sample_tokens(*prior, some_prompt(), kCandidates, {},
                             [&](int64_t done) {
                               calls.push_back(done);
                               return done < 2;
                             }),
               Interrupted);
  EXPECT_THAT(calls, ::testing::ElementsAre(1, 2));
}

TEST(TokenSampler, RecordsNoGraph) {
  const auto prior = random_prior(prior_cases().front(), 2, at::kFloat);
  prior->set_requires_grad(true);
  const auto drawn = sample_tokens(*prior, some_prompt(), kCandidates, {});
  EXPECT_FALSE(drawn.log_likelihood_B.requires_grad());
  EXPECT_FALSE(image_log_likelihood(*prior, some_caption(), drawn.tokens_BI).requires_grad());
}

}  // namespace
}  // namespace dalle::generation

// Candidates of one caption as image tokens. The noise of a candidate depends on (seed, caption text, candidate number,
// position) alone, so it does not matter how candidates are batched, nor which others are drawn.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "dalle/generation/decoder.h"
#include "dalle/generation/logits_filter.h"
#include "dalle/models/prior.h"

namespace dalle::generation {

struct SamplingOptions {
  FilterOptions filter;
  double guidance = 1;  // classifier-free guidance: null + guidance * (conditional - null); 1 is off
  uint64_t seed = 0;
};

struct CaptionPrompt {
  std::string caption;    // its text names the noise
  Tensor ids_T;           // int64 [T - 1], kPadToken past the end
  Tensor image_prompt_n;  // int64 [n] first image tokens to keep (image priming), or undefined
};

struct SampledTokens {
  Tensor tokens_BI;  // int64 [B, I]
  Tensor
      log_likelihood_B;  // f64 [B]: sum of ln p of all tokens, kept ones too, at temperature 1, unfiltered, without guidance
};

/// Called after each image slot with the number of slots done of this batch; return false to stop (an exception is thrown
/// then: generation::Interrupted).
using SlotCallback = std::function<bool(int64_t slots_done)>;

struct Interrupted : std::exception {
  const char* what() const noexcept override { return "sampling was interrupted"; }
};

/// Draws candidates of captions, one batch after the other, with weights made ready once.
class TokenSampler {
 public:
  /// `prior` must outlive the sampler and keep its weights.
  explicit TokenSampler(const models::Prior& prior, const DecodeOptions& options = {});

  /// Draws the candidates with the given numbers, together in one batch. Slots of an image prompt run once for all.
  SampledTokens draw(const CaptionPrompt& prompt, std::span<const int64_t> candidates, const SamplingOptions& options,
                     const SlotCallback& on_slot = {});
  const DecodingModel& model() const { return *model_; }

 private:
  const models::Prior& prior_;
  std::unique_ptr<DecodingModel> model_;
};

/// One batch by a TokenSampler of its own.
SampledTokens sample_tokens(const models::Prior& prior, const CaptionPrompt& prompt,
                            std::span<const int64_t> candidates, const SamplingOptions& options,
                            const SlotCallback& on_slot = {}, const DecodeOptions& decode = {});

/// Sum of ln p of image tokens [B, I] under the prior given the caption, by one full (teacher-forced) pass: f64 [B].
Tensor image_log_likelihood(const models::Prior& prior, const Tensor& ids_T, const Tensor& tokens_BI);

}  // namespace dalle::generation

#include "dalle/generation/token_sampler.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <optional>
#include <vector>

#include "dalle/core/random.h"
#include "dalle/generation/prior_decoder.h"
#include "dalle/layers/cross_entropy.h"

namespace dalle::generation {
namespace {

std::vector<RandomKey> candidate_keys(const std::string& caption, std::span<const int64_t> candidates, uint64_t seed) {
  std::vector<RandomKey> keys;
  const uint64_t text = stable_hash(caption);
  for (const int64_t number : candidates) {
    keys.push_back(random_key(seed, Purpose::kSampling, text, static_cast<uint64_t>(number)));
  }
  return keys;
}

}  // namespace

SampledTokens sample_tokens(const models::Prior& prior, const CaptionPrompt& prompt,
                            std::span<const int64_t> candidates, const SamplingOptions& options,
                            const SlotCallback& on_slot) {
  const c10::NoGradGuard no_grad;
  const auto& config = prior.config();
  const auto batch = static_cast<int64_t>(candidates.size());
  const at::Device device = prior.device();
  const auto keys = candidate_keys(prompt.caption, candidates, options.seed);
  const Tensor ids = prompt.ids_T.to(device);
  PriorDecoder decoder(prior, ids, batch);
  std::optional<PriorDecoder> null_decoder;
  if (options.guidance != 1) null_decoder.emplace(prior, at::full_like(ids, models::kPadToken), batch);

  const Tensor primed = prompt.image_prompt_n.defined() ? prompt.image_prompt_n.to(device) : Tensor();
  const int64_t num_primed = primed.defined() ? primed.size(0) : 0;
  SampledTokens out{at::zeros({batch, config.image_context()}, at::TensorOptions(at::kLong).device(device)),
                    at::zeros({batch}, at::TensorOptions(at::kDouble).device(device))};
  Tensor previous = at::zeros({batch}, out.tokens_BI.options());
  for (int64_t slot = 0; slot < config.image_context(); ++slot) {
    const Tensor conditional_BV = decoder.step(slot, previous);
    Tensor logits_BV = conditional_BV;
    if (null_decoder) {
      const Tensor null_BV = null_decoder->step(slot, previous);
      logits_BV = null_BV + (conditional_BV - null_BV) * options.guidance;
    }
    if (slot < num_primed) {
      previous = primed.select(0, slot).expand({batch}).contiguous();
    } else {
      // argmax(logits + Gumbel) is a draw from softmax(logits): one comparison per code, stable under rounding.
      const Tensor noise = gumbel_rows(keys, config.image_vocab_size, device, slot * config.image_vocab_size);
      previous = (filter_logits(logits_BV, options.filter) + noise).argmax(1);
    }
    out.tokens_BI.select(1, slot).copy_(previous);
    const Tensor log_p = at::log_softmax(conditional_BV.to(at::kDouble), 1);
    out.log_likelihood_B += log_p.gather(1, previous.unsqueeze(1)).squeeze(1);
    if (on_slot && !on_slot(slot + 1)) throw Interrupted();
  }
  return out;
}

Tensor image_log_likelihood(const models::Prior& prior, const Tensor& ids_T, const Tensor& tokens_BI) {
  const c10::NoGradGuard no_grad;
  const Tensor captions = ids_T.to(prior.device()).unsqueeze(0).expand({tokens_BI.size(0), -1});
  const Tensor tokens = tokens_BI.to(prior.device());
  const auto output = prior.forward(captions, tokens);
  return layers::cross_entropy_each(output.image_logits_BIV, tokens).to(at::kDouble).sum(1).neg();
}

}  // namespace dalle::generation

#include "dalle/generation/token_sampler.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include <vector>

#include "dalle/core/random.h"
#include "dalle/generation/token_draw.h"
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

// Tokens [B] drawn from a slot's logits [C, B, V], by operators on any device.
Tensor draw_by_operators(const Tensor& logits_CBV, std::span<const RandomKey> keys, int64_t slot,
                         const SamplingOptions& options) {
  Tensor logits_BV = logits_CBV[0];
  if (logits_CBV.size(0) == 2) logits_BV = logits_CBV[1] + (logits_BV - logits_CBV[1]) * options.guidance;
  // argmax(logits + Gumbel) is a draw from softmax(logits): one comparison per code, stable under rounding.
  const int64_t vocab = logits_BV.size(1);
  const Tensor noise = gumbel_rows(keys, vocab, logits_BV.device(), slot * vocab);
  return (filter_logits(logits_BV, options.filter) + noise).argmax(1);
}

bool goes_by_rows(const Tensor& logits) { return logits.is_cpu() && logits.scalar_type() == at::kFloat; }

// ln p of tokens [B] under the caption's own logits: f64 [B].
Tensor log_likelihood_of(const Tensor& logits_CBV, const Tensor& tokens_B) {
  const Tensor log_p = at::log_softmax(logits_CBV[0].to(at::kDouble), 1);
  return log_p.gather(1, tokens_B.unsqueeze(1)).squeeze(1);
}

// Row b's token, drawn from its logits guided and filtered in `own`.
int64_t draw_row(const Tensor& logits_CBV, int64_t b, RandomKey key, int64_t slot, const SamplingOptions& options,
                 std::vector<float>& own) {
  const int64_t batch = logits_CBV.size(1), vocab = logits_CBV.size(2);
  std::span<const float> row(logits_CBV.const_data_ptr<float>() + b * vocab, static_cast<size_t>(vocab));
  const bool is_guided = logits_CBV.size(0) == 2;
  if (is_guided || options.filter != FilterOptions{}) {
    own.assign(row.begin(), row.end());
    if (is_guided) guide(own, {row.data() + batch * vocab, row.size()}, static_cast<float>(options.guidance));
    filter_row(own, options.filter);
    row = own;
  }
  return gumbel_argmax(row, key, slot * vocab);
}

// The same row by row, for f32 logits on the CPU: a slot's tokens to tokens_B and `out`, with their likelihoods while
// their logits are near.
void draw_by_rows(const Tensor& logits_CBV, std::span<const RandomKey> keys, int64_t slot,
                  const SamplingOptions& options, const Tensor& tokens_B, const SampledTokens& out) {
  const int64_t batch = logits_CBV.size(1), vocab = logits_CBV.size(2), slots = out.tokens_BI.size(1);
  const auto* logits = logits_CBV.const_data_ptr<float>();
  auto *tokens = tokens_B.mutable_data_ptr<int64_t>(), *all = out.tokens_BI.mutable_data_ptr<int64_t>() + slot;
  auto* likelihood = out.log_likelihood_B.mutable_data_ptr<double>();
  const auto run_rows = [&](int64_t begin, int64_t end) {
    std::vector<float> own;
    for (int64_t b = begin; b < end; ++b) {
      tokens[b] = draw_row(logits_CBV, b, keys[static_cast<size_t>(b)], slot, options, own);
      all[b * slots] = tokens[b];
      likelihood[b] += log_probability({logits + b * vocab, static_cast<size_t>(vocab)}, tokens[b]);
    }
  };
  if (batch == 1) return run_rows(0, 1);
  at::parallel_for(0, batch, 1, run_rows);
}

}  // namespace

TokenSampler::TokenSampler(const models::Prior& prior, const DecodeOptions& options)
    : prior_(prior), model_(make_decoding_model(prior, options)) {}

SampledTokens TokenSampler::draw(const CaptionPrompt& prompt, std::span<const int64_t> candidates,
                                 const SamplingOptions& options, const SlotCallback& on_slot) {
  const c10::NoGradGuard no_grad;
  const auto& config = prior_.config();
  const auto batch = static_cast<int64_t>(candidates.size());
  const at::Device device = prior_.device();
  const auto keys = candidate_keys(prompt.caption, candidates, options.seed);
  const Tensor primed = prompt.image_prompt_n.defined() ? prompt.image_prompt_n.to(device) : Tensor();
  const int64_t num_primed = primed.defined() ? primed.size(0) : 0;

  Tensor captions_CT = prompt.ids_T.to(device).unsqueeze(0);
  if (options.guidance != 1) captions_CT = at::cat({captions_CT, at::full_like(captions_CT, models::kPadToken)});
  // What the candidates share is run once: the text, and the slots whose tokens are given.
  const auto decoder = model_->start(captions_CT, num_primed > 0 ? 1 : batch);
  SampledTokens out{at::empty({batch, config.image_context()}, at::TensorOptions(at::kLong).device(device)),
                    at::zeros({batch}, at::TensorOptions(at::kDouble).device(device))};
  Tensor previous = at::zeros({num_primed > 0 ? 1 : batch}, out.tokens_BI.options());
  for (int64_t slot = 0; slot < config.image_context(); ++slot) {
    if (slot == num_primed && num_primed > 0) {
      decoder->expand(batch);
      previous = previous.expand({batch}).clone(at::MemoryFormat::Contiguous);  // is written to
    }
    const Tensor logits_CBV = decoder->step(slot, previous);
    if (slot >= num_primed && goes_by_rows(logits_CBV)) {
      draw_by_rows(logits_CBV, keys, slot, options, previous, out);
    } else {
      const bool is_given = slot < num_primed;
      previous = is_given ? primed.slice(0, slot, slot + 1) : draw_by_operators(logits_CBV, keys, slot, options);
      out.tokens_BI.select(1, slot).copy_(previous);
      out.log_likelihood_B += log_likelihood_of(logits_CBV, previous);
    }
    // A GPU is waited for once a row, so that progress is of what is done.
    if (device.is_cuda() && (slot + 1) % config.grid_size == 0) previous.slice(0, 0, 1).item<int64_t>();
    if (on_slot && !on_slot(slot + 1)) throw Interrupted();
  }
  return out;
}

SampledTokens sample_tokens(const models::Prior& prior, const CaptionPrompt& prompt,
                            std::span<const int64_t> candidates, const SamplingOptions& options,
                            const SlotCallback& on_slot, const DecodeOptions& decode) {
  return TokenSampler(prior, decode).draw(prompt, candidates, options, on_slot);
}

Tensor image_log_likelihood(const models::Prior& prior, const Tensor& ids_T, const Tensor& tokens_BI) {
  const c10::NoGradGuard no_grad;
  const Tensor captions = ids_T.to(prior.device()).unsqueeze(0).expand({tokens_BI.size(0), -1});
  const Tensor tokens = tokens_BI.to(prior.device());
  const auto output = prior.forward(captions, tokens);
  return layers::cross_entropy_each(output.image_logits_BIV, tokens).to(at::kDouble).sum(1).neg();
}

}  // namespace dalle::generation

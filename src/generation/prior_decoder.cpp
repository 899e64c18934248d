#include "dalle/generation/prior_decoder.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <cmath>

namespace dalle::generation {

using layers::AttentionKind;

PriorDecoder::PriorDecoder(const models::Prior& prior, const Tensor& caption_T, int64_t batch)
    : prior_(prior), batch_(batch), caches_(static_cast<size_t>(prior.config().num_layers)) {
  const c10::NoGradGuard no_grad;
  const auto& config = prior.config();
  const Tensor x_1TD = prior.embed_text(caption_T.unsqueeze(0));
  const Tensor causal = layers::causal_mask(config.text_context);
  const Tensor bias = layers::mask_to_bias(causal, prior.compute().dtype).to(x_1TD.device());
  prior.transformer.forward(
      x_1TD, [&](int64_t layer) { return prefill_attention(layer, bias); }, layers::plain_runner());
}

layers::AttendFunction PriorDecoder::prefill_attention(int64_t layer, const Tensor& bias_TT) {
  return [this, layer, bias_TT](const Tensor& q, const Tensor& k, const Tensor& v) {
    LayerCache& cache = caches_[static_cast<size_t>(layer)];
    cache.kind = prior_.config().layer_kind(layer);
    cache.text_k_HTK = k.squeeze(0).contiguous();
    cache.text_v_HTK = v.squeeze(0).contiguous();
    // Zeros, not empty: what is never read may still not be NaN for kernels that multiply masked values.
    const std::vector<int64_t> sizes{batch_, k.size(1), prior_.config().image_context(), k.size(3)};
    cache.image_k_BHIK = at::zeros(sizes, k.options());
    cache.image_v_BHIK = at::zeros(sizes, v.options());
    return layers::dense_attention(bias_TT)(q, k, v);
  };
}

Tensor PriorDecoder::visible(const Tensor& cache_BHIK, AttentionKind kind, int64_t slot) const {
  const auto& config = prior_.config();
  const int64_t grid = config.grid_size;
  switch (kind) {
    case AttentionKind::kFull:
      return cache_BHIK.slice(2, 0, slot + 1);
    case AttentionKind::kRow:
      return cache_BHIK.slice(2, std::max<int64_t>(0, slot - grid), slot + 1);
    case AttentionKind::kColumn:
      return cache_BHIK.slice(2, slot % grid, slot + 1, grid);
    case AttentionKind::kConv:
      break;
  }
  const auto slots = layers::visible_image_slots(kind, grid, {config.conv_kernel, config.conv_mask_edge}, slot);
  return cache_BHIK.index_select(2, at::tensor(slots, at::kLong).to(cache_BHIK.device()));
}

layers::AttendFunction PriorDecoder::step_attention(int64_t layer, int64_t slot) {
  return [this, layer, slot](const Tensor& q_BH1K, const Tensor& k_BH1K, const Tensor& v_BH1K) {
    LayerCache& cache = caches_[static_cast<size_t>(layer)];
    cache.image_k_BHIK.slice(2, slot, slot + 1).copy_(k_BH1K);
    cache.image_v_BHIK.slice(2, slot, slot + 1).copy_(v_BH1K);
    const Tensor keys = visible(cache.image_k_BHIK, cache.kind, slot);
    const Tensor values = visible(cache.image_v_BHIK, cache.kind, slot);
    const int64_t text = cache.text_k_HTK.size(1);
    const auto type = q_BH1K.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    const Tensor q_HBK = q_BH1K.squeeze(2).transpose(0, 1);
    // The shared text keys are read once for all candidates; softmax over text and image together, in f32.
    const Tensor text_scores_BHT = at::bmm(q_HBK, cache.text_k_HTK.transpose(1, 2)).transpose(0, 1);
    const Tensor image_scores_BHn = at::matmul(q_BH1K, keys.transpose(2, 3)).squeeze(2);
    const double scale = 1.0 / std::sqrt(static_cast<double>(q_BH1K.size(3)));
    const Tensor scores = at::cat({text_scores_BHT, image_scores_BHn}, 2).to(type) * scale;
    const Tensor weights = at::softmax(scores, 2).to(q_BH1K.scalar_type());
    const Tensor from_text_HBK = at::bmm(weights.slice(2, 0, text).transpose(0, 1), cache.text_v_HTK);
    const Tensor from_image_BH1K = at::matmul(weights.slice(2, text).unsqueeze(2), values);
    return from_text_HBK.transpose(0, 1).unsqueeze(2) + from_image_BH1K;
  };
}

Tensor PriorDecoder::step(int64_t slot, const Tensor& tokens_B) {
  const c10::NoGradGuard no_grad;
  const Tensor x_B1D = prior_.embed_image_slots(tokens_B.unsqueeze(1), slot);
  const Tensor out = prior_.transformer.forward(
      x_B1D, [&](int64_t layer) { return step_attention(layer, slot); }, layers::plain_runner());
  return prior_.image_logits(prior_.ln_final.forward(out)).squeeze(1);
}

void PriorDecoder::expand(int64_t batch) {
  TORCH_CHECK_VALUE(batch_ == 1 && batch > 0, "[prior decoder] expected one candidate to make ", batch, " of, got ",
                    batch_);
  for (LayerCache& cache : caches_) {
    cache.image_k_BHIK = cache.image_k_BHIK.repeat_interleave(batch, 0);
    cache.image_v_BHIK = cache.image_v_BHIK.repeat_interleave(batch, 0);
  }
  batch_ = batch;
}

namespace {

class OperatorDecoder : public Decoder {
 public:
  OperatorDecoder(const models::Prior& prior, const Tensor& captions_CT, int64_t batch) {
    for (const Tensor& caption_T : captions_CT.unbind(0)) decoders_.emplace_back(prior, caption_T, batch);
  }

  Tensor step(int64_t slot, const Tensor& tokens_B) override {
    std::vector<Tensor> logits;
    for (PriorDecoder& decoder : decoders_) logits.push_back(decoder.step(slot, tokens_B));
    return at::stack(logits);
  }

  void expand(int64_t batch) override {
    for (PriorDecoder& decoder : decoders_) decoder.expand(batch);
  }

 private:
  std::vector<PriorDecoder> decoders_;
};

}  // namespace

int64_t OperatorModel::candidate_bytes() const {
  const auto& config = prior_.config();
  return 2 * config.num_layers * config.image_context() * config.dim *
         static_cast<int64_t>(c10::elementSize(prior_.compute().dtype));
}

std::unique_ptr<Decoder> OperatorModel::start(const Tensor& captions_CT, int64_t batch) {
  return std::make_unique<OperatorDecoder>(prior_, captions_CT, batch);
}

}  // namespace dalle::generation

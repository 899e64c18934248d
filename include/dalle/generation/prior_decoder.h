// Incremental decoding of the prior by LibTorch's operators, on any device and in any type: a key/value cache per layer, the text part computed once for a caption and shared by
// all its candidates. One step runs one image slot for the whole batch and reads only what the layer's mask allows.
//
// Suffixes: B candidates, H heads, K head_dim, T text slots, I image slots, V codes.
#pragma once

#include <memory>
#include <vector>

#include "dalle/generation/decoder.h"
#include "dalle/models/prior.h"

namespace dalle::generation {

/// Keys and values of one layer. Image slots are written in raster order; positions not yet written are never read.
struct LayerCache {
  Tensor text_k_HTK, text_v_HTK;  // shared by all candidates
  Tensor image_k_BHIK, image_v_BHIK;
  layers::AttentionKind kind = layers::AttentionKind::kFull;
};

class PriorDecoder {
 public:
  /// Runs the text of one caption (int64 [T - 1], kPadToken past its end) and prepares caches for `batch` candidates.
  /// `prior` must outlive the decoder.
  PriorDecoder(const models::Prior& prior, const Tensor& caption_T, int64_t batch);

  /// Runs image slot `slot` = 0, 1, ... in order. tokens_B: image token slot - 1 of each candidate, ignored at slot 0.
  /// Returns the logits of image token `slot`, [B, V].
  Tensor step(int64_t slot, const Tensor& tokens_B);

  /// Makes `batch` candidates with the same past out of one.
  void expand(int64_t batch);

  int64_t batch() const { return batch_; }

 private:
  layers::AttendFunction prefill_attention(int64_t layer, const Tensor& bias_TT);
  layers::AttendFunction step_attention(int64_t layer, int64_t slot);
  /// Image slots visible from `slot` in a layer's cache, as a view where that is possible.
  Tensor visible(const Tensor& cache_BHIK, layers::AttentionKind kind, int64_t slot) const;

  const models::Prior& prior_;
  int64_t batch_;
  std::vector<LayerCache> caches_;
};

/// Decoding by PriorDecoder, one for each caption.
class OperatorModel : public DecodingModel {
 public:
  explicit OperatorModel(const models::Prior& prior) : prior_(prior) {}
  std::unique_ptr<Decoder> start(const Tensor& captions_CT, int64_t batch) override;
  int64_t candidate_bytes() const override;

 private:
  const models::Prior& prior_;
};

}  // namespace dalle::generation

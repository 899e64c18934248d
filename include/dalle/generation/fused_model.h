// Decoding on the CPU without an operator call in a step: layer norm, projections, attention over caches, MLP and head are
// own loops on packed weights (layers/packed_weights.h). The residual stream, norms, softmax and all sums are f32; weights,
// rows that are multiplied and caches are of the chosen format. In every format a candidate's logits are bitwise the same
// for any batch size and number of threads.
#pragma once

#include <memory>
#include <vector>

#include "dalle/generation/cache_layout.h"
#include "dalle/generation/decoder.h"
#include "dalle/layers/packed_weights.h"

namespace dalle::generation {

/// Packed weights of a prior. Takes their memory once more, beside the f32 masters, of which embeddings, norms and biases
/// stay in use.
class FusedModel : public DecodingModel {
 public:
  /// Whether this kind of prior can be decoded so: on the CPU, f32 masters, computing in f32 or bf16.
  static bool fits(const models::Prior& prior);
  explicit FusedModel(const models::Prior& prior, bool int8_weights = false);
  ~FusedModel() override;

  std::unique_ptr<Decoder> start(const Tensor& captions_CT, int64_t batch) override;
  int64_t candidate_bytes() const override;

  /// Bytes of weights that a step reads at least: packed matrices, biases and norms.
  int64_t weight_bytes() const;
  /// Bytes of keys and values that candidates and text read in a step, for one candidate, on average over all slots.
  double cache_bytes_per_step() const;
  /// Number format of keys and values.
  at::ScalarType cache_type() const;

  struct Parts;  // private to the implementation

 private:
  std::unique_ptr<Parts> parts_;
};

}  // namespace dalle::generation

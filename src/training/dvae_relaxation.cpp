#include "dalle/training/dvae_relaxation.h"

#include <ATen/ATen.h>

#include "dalle/layers/relaxation.h"

namespace dalle::training {
namespace {

// Gumbel noise [B, V, G, G] of the pictures at these positions, codes innermost: the channels-last layout of the logits.
Tensor gumbel_of(const Tensor& logits_BVHW, const std::vector<int64_t>& positions, const RelaxationDraw& draw) {
  std::vector<RandomKey> keys;
  for (const int64_t position : positions) {
    keys.push_back(random_key(draw.seed, draw.purpose, static_cast<uint64_t>(position)));
  }
  const int64_t vocab = logits_BVHW.size(1), height = logits_BVHW.size(2), width = logits_BVHW.size(3);
  return gumbel_rows(keys, height * width * vocab, logits_BVHW.device())
      .view({logits_BVHW.size(0), height, width, vocab})
      .permute({0, 3, 1, 2});
}

}  // namespace

RelaxedCodes relax_codes(const Tensor& logits_BVHW, const std::vector<int64_t>& positions, const RelaxationDraw& draw) {
  Tensor codes = layers::gumbel_softmax(logits_BVHW, gumbel_of(logits_BVHW, positions, draw), draw.temperature);
  if (draw.straight_through) {
    const Tensor hard = layers::one_hot_codes(layers::argmax_codes(codes.detach()), codes.size(1));
    codes = hard + (codes - codes.detach());  // exactly one-hot in value: x - x is 0
  }
  return {codes, layers::kl_to_uniform(logits_BVHW)};
}

}  // namespace dalle::training

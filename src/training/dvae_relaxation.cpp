#include "dalle/training/dvae_relaxation.h"

namespace dalle::training {

layers::Relaxation relax_codes(const Tensor& logits_BVHW, const std::vector<int64_t>& positions,
                               const RelaxationDraw& draw) {
  std::vector<RandomKey> keys;
  for (const int64_t position : positions) {
    keys.push_back(random_key(draw.seed, draw.purpose, static_cast<uint64_t>(position)));
  }
  return layers::relax(logits_BVHW, keys, draw.temperature, draw.straight_through);
}

}  // namespace dalle::training

// The one place where training and validation turn the encoder's logits into the decoder's input and the KL.
#pragma once

#include <cstdint>
#include <vector>

#include "dalle/core/random.h"
#include "dalle/core/tensor.h"

namespace dalle::training {

struct RelaxationDraw {
  uint64_t seed = 0;
  Purpose purpose = Purpose::kGumbel;
  double temperature = 1;
  bool straight_through = false;
};

struct RelaxedCodes {
  Tensor codes_BVHW;  // relaxed, or one-hot with the relaxed gradient
  Tensor kl_BHW;      // of softmax(logits) to the uniform prior, nats per position
};

/// Gumbel-softmax samples (paper 2.1). The noise of a picture is a function of (seed, purpose, its position) alone, so the
/// argmax of a relaxed code is a draw from q whatever the temperature.
RelaxedCodes relax_codes(const Tensor& logits_BVHW, const std::vector<int64_t>& positions, const RelaxationDraw& draw);

}  // namespace dalle::training

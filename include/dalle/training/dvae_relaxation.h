// The one place where training and validation turn the encoder's logits into the decoder's input and the KL.
#pragma once

#include <cstdint>
#include <vector>

#include "dalle/core/random.h"
#include "dalle/core/tensor.h"
#include "dalle/layers/relaxation.h"

namespace dalle::training {

struct RelaxationDraw {
  uint64_t seed = 0;
  Purpose purpose = Purpose::kGumbel;
  double temperature = 1;
  bool straight_through = false;
};

/// Gumbel-softmax samples (paper 2.1). The noise of a picture is a function of (seed, purpose, its position) alone, so the
/// argmax of a relaxed code is a draw from q whatever the temperature.
layers::Relaxation relax_codes(const Tensor& logits_BVHW, const std::vector<int64_t>& positions,
                               const RelaxationDraw& draw);

}  // namespace dalle::training

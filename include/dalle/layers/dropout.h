// Dropout (Srivastava et al. 2014) whose masks are functions of (seed, sample, place, element): the same for any split of a
// batch, any number of threads, a resumed run, and a block that is computed again for its gradient.
#pragma once

#include <cstdint>
#include <vector>

#include "dalle/core/tensor.h"

namespace dalle::layers {

/// Off by default. A value, to be captured by the functions that block runners keep.
struct Dropout {
  double rate = 0;  // share of elements set to 0, in [0, 1); the others are divided by 1 - rate
  uint64_t seed = 0;
  std::vector<int64_t> positions;  // global position of each sample of the batch

  /// x [B, ...] with B positions. `place` tells the uses within one model apart. x itself where the rate is 0. Throws
  /// c10::ValueError where the number of positions is not B.
  Tensor apply(const Tensor& x, int64_t place) const;
};

}  // namespace dalle::layers

// Dropout (Srivastava et al. 2014) whose masks are functions of (seed, sample, place, element): the same for any split of a
// batch, any number of threads, a resumed run, and a block that is computed again for its gradient.
#pragma once

#include <cstdint>
#include <vector>

#include "dalle/core/pair_words.h"
#include "dalle/core/tensor.h"

namespace dalle::layers {

/// Off by default. A value, to be captured by the functions that block runners keep.
struct Dropout {
  double rate = 0;  // share of elements set to 0, in [0, 1); the others are divided by 1 - rate
  uint64_t seed = 0;
  std::vector<int64_t> positions;  // global position of each sample of the batch
  double attention_rate = 0;       // share of attention weights, in [0, 1): see below

  /// x [B, ...] with B positions. `place` tells the uses within one model apart. x itself where the rate is 0. Throws
  /// c10::ValueError where the number of positions is not B.
  Tensor apply(const Tensor& x, int64_t place) const;
};

/// Dropout of attention weights after the softmax (Vaswani et al. 2017's implementation; Zehui et al. 2019): each weight is
/// 0 with probability `rate` and divided by 1 - rate otherwise, as a function of (seed, sample, layer, head, query, key),
/// positions counted in the sequence, so that every way of computing attention drops the same.
struct AttentionDropout {
  double rate = 0;
  std::vector<RandomKey> keys;  // of each sample of the batch, in this layer

  bool is_on() const { return rate > 0; }
  /// A pair word below this is dropped.
  uint32_t threshold() const;
  float kept() const { return static_cast<float>(1 / (1 - rate)); }
  /// Throws c10::ValueError where there is not a key for each sample.
  void check_batch(int64_t batch) const;
  static PairRow row(RandomKey key, int64_t head, int64_t query);
  /// All factors at once: f32 [B, heads, length, length] of 0 and 1 / (1 - rate).
  Tensor factors(int64_t heads, int64_t length, at::Device device) const;
};

/// Off where the rate is 0.
AttentionDropout attention_dropout(const Dropout& dropout, int64_t layer);

}  // namespace dalle::layers

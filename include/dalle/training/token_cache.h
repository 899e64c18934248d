// Image tokens of pictures that look the same in every epoch (no augmentation): the frozen dVAE encodes each once.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "dalle/core/tensor.h"

namespace dalle::training {

class TokenCache {
 public:
  /// Holds nothing.
  TokenCache() = default;
  /// For samples 0 .. num_samples - 1 of `tokens` image tokens below `vocab_size`, on `device`. Holds nothing where all of them
  /// would take more than `limit_bytes`: large data sets have token shards.
  TokenCache(int64_t num_samples, int64_t tokens, int64_t vocab_size, at::Device device,
             int64_t limit_bytes = int64_t{64} << 20);

  bool holds_any() const { return codes_SI_.defined(); }
  /// int64 [B, tokens] where all of `samples` were put before, else undefined.
  Tensor find(std::span<const int64_t> samples) const;
  /// tokens_BI: int64 [B, tokens], of `samples` in their order.
  void put(std::span<const int64_t> samples, const Tensor& tokens_BI);

 private:
  Tensor index_of(std::span<const int64_t> samples) const;

  Tensor codes_SI_;  // int16 where the vocabulary fits, else int32
  std::vector<bool> is_known_;
};

}  // namespace dalle::training

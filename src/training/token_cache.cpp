#include "dalle/training/token_cache.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "dalle/core/device.h"

namespace dalle::training {

TokenCache::TokenCache(int64_t num_samples, int64_t tokens, int64_t vocab_size, at::Device device,
                       int64_t limit_bytes) {
  const auto type = vocab_size <= (1 << 15) ? at::kShort : at::kInt;
  if (num_samples * tokens * static_cast<int64_t>(c10::elementSize(type)) > limit_bytes) return;
  codes_SI_ = at::empty({num_samples, tokens}, at::TensorOptions(type).device(device));
  is_known_.resize(static_cast<size_t>(num_samples));
}

Tensor TokenCache::index_of(std::span<const int64_t> samples) const {
  return to_device(at::tensor(at::ArrayRef<int64_t>(samples.data(), samples.size()), at::kLong), codes_SI_.device());
}

Tensor TokenCache::find(std::span<const int64_t> samples) const {
  const auto known = [&](int64_t sample) { return is_known_[static_cast<size_t>(sample)]; };
  if (!holds_any() || !std::all_of(samples.begin(), samples.end(), known)) return {};
  return codes_SI_.index_select(0, index_of(samples)).to(at::kLong);
}

void TokenCache::put(std::span<const int64_t> samples, const Tensor& tokens_BI) {
  if (!holds_any()) return;
  TORCH_CHECK_VALUE(tokens_BI.dim() == 2 && tokens_BI.size(0) == static_cast<int64_t>(samples.size()) &&
                        tokens_BI.size(1) == codes_SI_.size(1),
                    "[token cache] expected [", samples.size(), ", ", codes_SI_.size(1), "] tokens, got ",
                    tokens_BI.sizes());
  codes_SI_.index_copy_(0, index_of(samples), tokens_BI.to(codes_SI_.scalar_type()));
  for (const int64_t sample : samples) is_known_[static_cast<size_t>(sample)] = true;
}

}  // namespace dalle::training

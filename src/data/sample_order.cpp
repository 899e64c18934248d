#include "dalle/data/sample_order.h"

#include <c10/util/Exception.h>

#include <algorithm>

#include "dalle/core/random.h"

namespace dalle::data {

SampleOrder::SampleOrder(int64_t size, uint64_t seed, int64_t num_streams, bool shuffle)
    : size_(size), seed_(seed), num_streams_(num_streams), shuffle_(shuffle) {
  TORCH_CHECK_VALUE(size >= 1, "[sample order] size must be at least 1, got ", size);
  TORCH_CHECK_VALUE(num_streams >= 1, "[sample order] num_streams must be at least 1, got ", num_streams);
}

int64_t SampleOrder::index_at(int64_t position) const {
  TORCH_CHECK_VALUE(position >= 0, "[sample order] position must not be negative, got ", position);
  const int64_t in_epoch = position % size_;
  if (!shuffle_) return in_epoch;
  const int64_t stream = in_epoch % num_streams_;
  const auto streams = streams_of(position / size_);
  const int64_t element = (*streams)[static_cast<size_t>(stream)][static_cast<size_t>(in_epoch / num_streams_)];
  return stream + num_streams_ * element;
}

std::shared_ptr<const SampleOrder::Streams> SampleOrder::streams_of(int64_t epoch) const {
  const std::lock_guard lock(mutex_);
  Epoch& slot = cache_[static_cast<size_t>(epoch % 2)];
  if (slot.number != epoch) {
    auto streams = std::make_shared<Streams>();
    for (int64_t v = 0; v < std::min(num_streams_, size_); ++v) {
      const auto key = random_key(seed_, Purpose::kDataOrder, static_cast<uint64_t>(epoch), static_cast<uint64_t>(v));
      streams->push_back(permutation(key, (size_ - v + num_streams_ - 1) / num_streams_));
    }
    slot = {epoch, std::move(streams)};
  }
  return slot.streams;
}

}  // namespace dalle::data

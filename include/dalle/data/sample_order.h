// The order in which samples are seen. An epoch is cut into V virtual streams; ranks and loader threads share them out,
// so the global sequence depends on neither, and a position in it is all that resuming needs.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

namespace dalle::data {

/// Sample i belongs to stream i % V. Position g of an epoch is element g / V of stream g % V, and each stream's order
/// in an epoch is a permutation keyed by (seed, epoch, stream). Thread-safe.
class SampleOrder {
 public:
  /// `size`: samples in the data set (>= 1). Without `shuffle` the order is that of the source.
  SampleOrder(int64_t size, uint64_t seed, int64_t num_streams, bool shuffle);

  /// Index of the sample at global position `position` >= 0; epoch position / size.
  int64_t index_at(int64_t position) const;
  int64_t epoch_of(int64_t position) const { return position / size_; }
  int64_t size() const { return size_; }

 private:
  using Streams = std::vector<std::vector<int64_t>>;
  struct Epoch {
    int64_t number = -1;
    std::shared_ptr<const Streams> streams;
  };
  std::shared_ptr<const Streams> streams_of(int64_t epoch) const;

  int64_t size_;
  uint64_t seed_;
  int64_t num_streams_;
  bool shuffle_;
  mutable std::mutex mutex_;
  mutable std::array<Epoch, 2> cache_;  // a batch may straddle two epochs
};

}  // namespace dalle::data

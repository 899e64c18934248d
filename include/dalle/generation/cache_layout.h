// Where a layer's cache keeps the keys and values of image slots, and for how long. A cache holds only what some later
// slot may still see (paper 2.2, figure 11), and keeps what one slot sees in few stretches:
//   row     a ring of the last W + 1 slots: a slot reads the whole ring
//   column  all slots, column after column: a slot reads one stretch of its column
//   conv    a ring in raster order from the farthest slot of the window on: (kernel / 2) W + kernel / 2 + 1 slots
//   full    all slots: a slot reads one stretch
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "dalle/models/prior.h"

namespace dalle::generation {

/// Neighbouring positions of a cache.
struct CacheSpan {
  int64_t begin = 0;
  int64_t size = 0;
  bool operator==(const CacheSpan&) const = default;
};

/// Whether a slot is written before it reads, and reads itself, or after, and what it gives itself comes from elsewhere. Rings
/// are of whole rows of the grid then, those of a column side by side: what a slot sees lies together.
enum class OwnSlot { kRead, kApart };

class CacheLayout {
 public:
  CacheLayout(layers::AttentionKind kind, int64_t grid_size, const layers::ConvMask& conv,
              OwnSlot own = OwnSlot::kRead);

  /// Positions of the cache.
  int64_t capacity() const { return capacity_; }
  /// Where image slot `slot` is written.
  int64_t position(int64_t slot) const;
  /// What image slot `slot` reads, itself included unless apart, once all slots before it (and itself) were written in order.
  std::span<const CacheSpan> visible(int64_t slot) const;
  /// Most slots that one slot sees.
  int64_t max_visible() const { return max_visible_; }

 private:
  layers::AttentionKind kind_;
  int64_t grid_size_;
  int64_t rows_ = 0;  // of a ring of whole rows
  int64_t capacity_ = 0, max_visible_ = 0;
  std::vector<CacheSpan> spans_;
  std::vector<size_t> first_span_;  // of each slot, and the end
};

/// Bytes of all layers' image caches for one candidate with keys and values of type `dtype`. What the caption's text takes
/// comes once for all candidates: text_cache_bytes().
int64_t bytes_per_candidate(const models::PriorConfig& config, at::ScalarType dtype);
int64_t text_cache_bytes(const models::PriorConfig& config, at::ScalarType dtype);

}  // namespace dalle::generation

#include "dalle/generation/cache_layout.h"

#include <algorithm>

namespace dalle::generation {

using layers::AttentionKind;

CacheLayout::CacheLayout(AttentionKind kind, int64_t grid_size, const layers::ConvMask& conv, OwnSlot own)
    : kind_(kind), grid_size_(grid_size) {
  const int64_t slots = grid_size * grid_size, own_read = own == OwnSlot::kRead ? 1 : 0;
  const bool is_ring = kind == AttentionKind::kRow || kind == AttentionKind::kConv;
  capacity_ = is_ring ? 1 : slots;
  for (int64_t slot = 0; is_ring && slot < slots; ++slot) {
    capacity_ = std::max(capacity_, slot - layers::visible_image_slots(kind, grid_size, conv, slot).front() + own_read);
  }
  if (is_ring && own == OwnSlot::kApart) {
    rows_ = (capacity_ + grid_size - 1) / grid_size;
    capacity_ = rows_ * grid_size;
  }
  for (int64_t slot = 0; slot < slots; ++slot) {
    first_span_.push_back(spans_.size());
    if (kind == AttentionKind::kFull) {  // the list of what it sees would be long
      max_visible_ = slot + own_read;
      if (max_visible_ > 0) spans_.push_back({0, max_visible_});
      continue;
    }
    std::vector<int64_t> positions;
    for (const int64_t seen : layers::visible_image_slots(kind, grid_size, conv, slot)) {
      if (seen < slot || own_read == 1) positions.push_back(position(seen));
    }
    std::sort(positions.begin(), positions.end());
    max_visible_ = std::max(max_visible_, static_cast<int64_t>(positions.size()));
    for (size_t i = 0; i < positions.size(); ++i) {
      const bool goes_on = i > 0 && positions[i] == positions[i - 1] + 1;
      if (!goes_on) spans_.push_back({positions[i], 0});
      ++spans_.back().size;
    }
  }
  first_span_.push_back(spans_.size());
}

int64_t CacheLayout::position(int64_t slot) const {
  switch (kind_) {
    case AttentionKind::kFull:
      return slot;
    case AttentionKind::kColumn:
      return slot % grid_size_ * grid_size_ + slot / grid_size_;
    case AttentionKind::kRow:
    case AttentionKind::kConv:
      if (rows_ > 0) return slot % grid_size_ * rows_ + slot / grid_size_ % rows_;
      return slot % capacity_;
  }
  return slot;
}

std::span<const CacheSpan> CacheLayout::visible(int64_t slot) const {
  const size_t first = first_span_.at(static_cast<size_t>(slot)), end = first_span_.at(static_cast<size_t>(slot) + 1);
  return std::span(spans_).subspan(first, end - first);
}

int64_t bytes_per_candidate(const models::PriorConfig& config, at::ScalarType dtype) {
  const layers::ConvMask conv{config.conv_kernel, config.conv_mask_edge};
  int64_t positions = 0;
  for (const auto& [kind, name] : EnumNames<AttentionKind>::values) {
    int64_t layers_of_kind = 0;
    for (int64_t layer = 0; layer < config.num_layers; ++layer) layers_of_kind += config.layer_kind(layer) == kind;
    if (layers_of_kind > 0) positions += layers_of_kind * CacheLayout(kind, config.grid_size, conv).capacity();
  }
  return 2 * positions * config.dim * static_cast<int64_t>(c10::elementSize(dtype));
}

int64_t text_cache_bytes(const models::PriorConfig& config, at::ScalarType dtype) {
  return 2 * config.num_layers * config.text_context * config.dim * static_cast<int64_t>(c10::elementSize(dtype));
}

}  // namespace dalle::generation

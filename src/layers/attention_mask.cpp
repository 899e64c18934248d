#include "dalle/layers/attention_mask.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace dalle::layers {
namespace {

std::vector<int64_t> conv_slots(int64_t grid, const ConvMask& conv, int64_t query) {
  const int64_t radius = conv.kernel / 2, row = query / grid, column = query % grid;
  std::vector<int64_t> slots;
  for (int64_t dr = -radius; dr <= 0; ++dr) {
    for (int64_t dc = -radius; dc <= radius; ++dc) {
      int64_t slot = query + dr * grid + dc;
      if (conv.edge == ConvMaskEdge::kClamp && (column + dc < 0 || column + dc >= grid)) continue;
      if (conv.edge == ConvMaskEdge::kCyclic) slot = (row + dr) * grid + ((column + dc) % grid + grid) % grid;
      if (row + dr < 0 && conv.edge != ConvMaskEdge::kRaster) continue;
      // On the query's own row only the left half; raster order also forbids anything after the query.
      if (slot < 0 || slot > query || (dr == 0 && dc > 0)) continue;
      slots.push_back(slot);
    }
  }
  std::sort(slots.begin(), slots.end());
  slots.erase(std::unique(slots.begin(), slots.end()), slots.end());
  return slots;
}

}  // namespace

AttentionKind paper_layer_kind(int64_t layer, int64_t num_layers) {
  const int64_t i = layer + 1;
  if (i == num_layers) return AttentionKind::kConv;
  return (i - 2) % 4 == 0 ? AttentionKind::kColumn : AttentionKind::kRow;
}

std::vector<int64_t> visible_image_slots(AttentionKind kind, int64_t grid, const ConvMask& conv, int64_t query) {
  std::vector<int64_t> slots;
  switch (kind) {
    case AttentionKind::kFull:
      for (int64_t slot = 0; slot <= query; ++slot) slots.push_back(slot);
      return slots;
    case AttentionKind::kRow:
      for (int64_t slot = std::max<int64_t>(0, query - grid); slot <= query; ++slot) slots.push_back(slot);
      return slots;
    case AttentionKind::kColumn:
      for (int64_t slot = query % grid; slot <= query; slot += grid) slots.push_back(slot);
      return slots;
    case AttentionKind::kConv:
      return conv_slots(grid, conv, query);
  }
  return slots;
}

Tensor causal_mask(int64_t length) { return at::ones({length, length}, at::kBool).tril(); }

Tensor attention_mask(AttentionKind kind, const SequenceLayout& layout, const ConvMask& conv) {
  Tensor mask = causal_mask(layout.length());
  const int64_t text = layout.text_context;
  mask.slice(0, text).slice(1, text).fill_(false);
  bool* data = mask.data_ptr<bool>();
  for (int64_t query = 0; query < layout.image_context(); ++query) {
    bool* row = data + (text + query) * layout.length() + text;
    for (const int64_t slot : visible_image_slots(kind, layout.grid_size, conv, query)) row[slot] = true;
  }
  return mask;
}

}  // namespace dalle::layers

// Which positions may see which: the sparse patterns of the paper (section 2.2, appendix B.1, figure 11) as pure functions.
//
// A sequence is text_context text slots, then grid_size^2 image slots in raster order. Text sees text causally; image
// slots see all text; image to image depends on the kind, and includes the slot itself:
//   full    every earlier slot
//   row     the last grid_size + 1 slots in raster order (fig. 11b), not "within the row"
//   column  the same column, rows up to its own (fig. 11c as a set; the transposition there is an implementation)
//   conv    an 11x11 kernel's causal half: raster offsets {0..5} and {dr * W + dc : dr 1..5, dc -5..5}
#pragma once

#include <string>
#include <vector>

#include "dalle/core/enum_names.h"
#include "dalle/core/tensor.h"

namespace dalle::layers {

enum class AttentionKind { kFull, kRow, kColumn, kConv };

/// What the conv mask does at the grid's left and right edge (the paper: "wraparound similar to the row attention").
enum class ConvMaskEdge {
  kRaster,  // offsets in raster order: the window continues on the neighbouring row
  kClamp,   // columns outside the grid are dropped
  kCyclic,  // columns wrap within their own row; positions after the query are dropped
};

struct SequenceLayout {
  int64_t text_context = 256;
  int64_t grid_size = 32;
  int64_t image_context() const { return grid_size * grid_size; }
  int64_t length() const { return text_context + image_context(); }
};

struct ConvMask {
  int64_t kernel = 11;  // odd
  ConvMaskEdge edge = ConvMaskEdge::kRaster;
};

/// Appendix B.1 with i = layer + 1: the last layer is conv; else (i - 2) mod 4 == 0 is column; else row.
AttentionKind paper_layer_kind(int64_t layer, int64_t num_layers);

/// Image slots (0-based within the image) that image slot `query` may see, ascending, itself included.
std::vector<int64_t> visible_image_slots(AttentionKind kind, int64_t grid_size, const ConvMask& conv, int64_t query);

/// bool [length, length], true where the row's slot may see the column's slot.
Tensor attention_mask(AttentionKind kind, const SequenceLayout& layout, const ConvMask& conv = {});

/// bool [length, length] lower triangle.
Tensor causal_mask(int64_t length);

}  // namespace dalle::layers

namespace dalle {
template <>
struct EnumNames<layers::AttentionKind> {
  static constexpr EnumName<layers::AttentionKind> values[] = {{layers::AttentionKind::kFull, "full"},
                                                               {layers::AttentionKind::kRow, "row"},
                                                               {layers::AttentionKind::kColumn, "column"},
                                                               {layers::AttentionKind::kConv, "conv"}};
};
template <>
struct EnumNames<layers::ConvMaskEdge> {
  static constexpr EnumName<layers::ConvMaskEdge> values[] = {{layers::ConvMaskEdge::kRaster, "raster"},
                                                              {layers::ConvMaskEdge::kClamp, "clamp"},
                                                              {layers::ConvMaskEdge::kCyclic, "cyclic"}};
};
}  // namespace dalle

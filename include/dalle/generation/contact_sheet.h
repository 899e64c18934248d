// Sheets of labelled pictures: candidates of a caption best first, what the model sees, original beside reconstruction.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dalle/core/tensor.h"
#include "dalle/generation/picture_writer.h"

namespace dalle::generation {

struct SheetCell {
  Tensor picture;            // u8 [H, W, 3] or floating point [3, H, W] in 0..1; undefined leaves the cell empty
  std::string label;         // under the picture, at most two lines
  bool highlighted = false;  // frame and label in the accent colour
};

struct SheetRow {
  std::string label;  // left of the pictures, at most six lines
  std::vector<SheetCell> cells;
};

struct SheetOptions {
  int64_t columns = 0;                     // 0: between square and twice as wide as high
  int64_t cell_size = 144;                 // side of the square that a picture is fitted into, px
  std::string title;                       // at most two lines
  std::string subtitle;                    // settings, scores: at most three lines
  std::vector<std::string> column_titles;  // over the columns of labelled_rows
  int64_t row_label_width = 190;           // px
  Enlarge enlarge = Enlarge::kSmooth;
};

/// A grid of cells in reading order. u8 [H, W, 3]. Throws c10::ValueError for no cells or sizes below 1.
Tensor contact_sheet(const std::vector<SheetCell>& cells, const SheetOptions& options);

/// One row of pictures for each label (caption: original, reconstruction, best of N). Rows may differ in length.
Tensor labelled_rows(const std::vector<SheetRow>& rows, const SheetOptions& options);

/// Cells from a batch, floating point [B, 3, H, W] in 0..1 or u8 [B, H, W, 3]; missing labels stay empty.
std::vector<SheetCell> make_cells(const Tensor& batch, const std::vector<std::string>& labels = {});

}  // namespace dalle::generation

#include "dalle/generation/contact_sheet.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

namespace dalle::generation {
namespace {

constexpr Colour kCard = {255, 255, 255};
constexpr Colour kAccent = {26, 115, 232};

constexpr int64_t kGap = 14;
constexpr int64_t kLabelGap = 6;
constexpr int64_t kFrame = 4;
constexpr int64_t kLabelLines = 2;

const TextStyle kTitleStyle{.size = 22, .colour = kInk, .bold = true};
const TextStyle kSubtitleStyle{.size = 14, .colour = kSoftInk};
const TextStyle kColumnStyle{.size = 14, .colour = kSoftInk, .bold = true};
const TextStyle kRowStyle{.size = 16, .colour = kInk};

TextStyle label_style(const SheetCell& cell) { return {.size = 14, .colour = cell.highlighted ? kAccent : kInk}; }

std::vector<std::string> label_lines(const SheetCell& cell, int64_t cell_size) {
  return wrap_text(cell.label, label_style(cell), cell_size, kLabelLines);
}

// The title block of a sheet: broken into lines once its width is known.
struct Header {
  std::vector<std::string> title, subtitle;
  int64_t height = 0;
};

Header make_header(const SheetOptions& options, int64_t width) {
  Header header{wrap_text(options.title, kTitleStyle, width, 2), wrap_text(options.subtitle, kSubtitleStyle, width, 3)};
  const auto lines = [](const std::vector<std::string>& text) { return static_cast<int64_t>(text.size()); };
  header.height = lines(header.title) * line_height(kTitleStyle) + lines(header.subtitle) * line_height(kSubtitleStyle);
  if (!header.title.empty() && !header.subtitle.empty()) header.height += 4;
  if (header.height > 0) header.height += 16;
  return header;
}

void draw_header(Tensor& sheet, const Header& header, int64_t width) {
  int64_t top = kSheetMargin;
  top += draw_lines(sheet, top, kSheetMargin, width, header.title, kTitleStyle, TextAlign::kLeft);
  if (!header.title.empty()) top += 4;
  draw_lines(sheet, top, kSheetMargin, width, header.subtitle, kSubtitleStyle, TextAlign::kLeft);
}

void draw_cell(Tensor& sheet, int64_t top, int64_t left, const SheetCell& cell, const SheetOptions& options) {
  const int64_t side = options.cell_size;
  if (!cell.picture.defined()) return;
  const int64_t frame = cell.highlighted ? kFrame : 1;
  fill_rectangle(sheet, top - frame, left - frame, side + 2 * frame, side + 2 * frame,
                 cell.highlighted ? kAccent : kHairline);
  fill_rectangle(sheet, top, left, side, side, kCard);
  const Tensor fitted = fit_picture(to_picture(cell.picture), side, options.enlarge);
  paste(sheet, fitted, top + (side - fitted.size(0)) / 2, left + (side - fitted.size(1)) / 2);
  draw_lines(sheet, top + side + kLabelGap, left, side, label_lines(cell, side), label_style(cell), TextAlign::kCentre);
}

// Room that the labels of some cells need under their pictures.
int64_t label_room(const std::vector<SheetCell>& cells, int64_t cell_size) {
  size_t lines = 0;
  for (const SheetCell& cell : cells) lines = std::max(lines, label_lines(cell, cell_size).size());
  return lines == 0 ? 0 : kLabelGap + static_cast<int64_t>(lines) * line_height(TextStyle{});
}

// Where nothing is asked for: between square and twice as wide as high, with the fewest empty cells.
int64_t choose_columns(int64_t num_cells, int64_t wanted) {
  if (wanted > 0) return std::min(num_cells, wanted);
  const auto narrowest = static_cast<int64_t>(std::ceil(std::sqrt(static_cast<double>(num_cells))));
  const auto widest = static_cast<int64_t>(std::ceil(std::sqrt(2.0 * static_cast<double>(num_cells))));
  const auto num_empty = [&](int64_t columns) { return (columns - num_cells % columns) % columns; };
  int64_t best = narrowest;
  for (int64_t columns = narrowest; columns <= widest; ++columns) {
    if (num_empty(columns) < num_empty(best)) best = columns;
  }
  return best;
}

int64_t row_width(int64_t columns, int64_t cell_size) { return columns * (cell_size + kGap) - kGap; }

// A title needs room even over a single small picture.
int64_t sheet_content_width(int64_t pictures_width, const SheetOptions& options) {
  return options.title.empty() && options.subtitle.empty() ? pictures_width : std::max<int64_t>(pictures_width, 320);
}

}  // namespace

Tensor contact_sheet(const std::vector<SheetCell>& cells, const SheetOptions& options) {
  TORCH_CHECK_VALUE(!cells.empty() && options.cell_size >= 1 && options.columns >= 0,
                    "a contact sheet needs a cell and positive sizes, got ", cells.size(), " cells of ",
                    options.cell_size, " px in ", options.columns, " columns");
  const auto num_cells = static_cast<int64_t>(cells.size());
  const int64_t columns = choose_columns(num_cells, options.columns);
  const int64_t num_rows = (num_cells + columns - 1) / columns;
  const int64_t width = sheet_content_width(row_width(columns, options.cell_size), options);
  const Header header = make_header(options, width);
  const int64_t row_height = options.cell_size + label_room(cells, options.cell_size) + kGap;
  Tensor sheet =
      blank_picture(2 * kSheetMargin + header.height + num_rows * row_height - kGap, 2 * kSheetMargin + width, kPaper);
  draw_header(sheet, header, width);
  for (int64_t i = 0; i < num_cells; ++i) {
    const int64_t top = kSheetMargin + header.height + i / columns * row_height;
    const int64_t left = kSheetMargin + i % columns * (options.cell_size + kGap);
    draw_cell(sheet, top, left, cells[static_cast<size_t>(i)], options);
  }
  return sheet;
}

Tensor labelled_rows(const std::vector<SheetRow>& rows, const SheetOptions& options) {
  size_t columns = 1;
  for (const SheetRow& row : rows) columns = std::max(columns, row.cells.size());
  TORCH_CHECK_VALUE(!rows.empty() && options.cell_size >= 1 && options.row_label_width >= 1,
                    "a sheet needs a row and positive sizes, got ", rows.size(), " rows");
  const int64_t label_width = options.row_label_width;
  const int64_t first_column = kSheetMargin + label_width + kGap;
  const int64_t pictures_width = row_width(static_cast<int64_t>(columns), options.cell_size);
  const int64_t width = sheet_content_width(label_width + kGap + pictures_width, options);
  const Header header = make_header(options, width);
  const int64_t titles_height = options.column_titles.empty() ? 0 : line_height(kColumnStyle) + 8;
  int64_t height = 2 * kSheetMargin + header.height + titles_height - kGap;
  for (const SheetRow& row : rows) height += options.cell_size + label_room(row.cells, options.cell_size) + kGap;

  Tensor sheet = blank_picture(height, 2 * kSheetMargin + width, kPaper);
  draw_header(sheet, header, width);
  const auto column_left = [&](size_t i) {
    return first_column + static_cast<int64_t>(i) * (options.cell_size + kGap);
  };
  for (size_t i = 0; i < std::min(columns, options.column_titles.size()); ++i) {
    draw_lines(sheet, kSheetMargin + header.height, column_left(i), options.cell_size,
               wrap_text(options.column_titles[i], kColumnStyle, options.cell_size, 1), kColumnStyle,
               TextAlign::kCentre);
  }
  int64_t top = kSheetMargin + header.height + titles_height;
  for (const SheetRow& row : rows) {
    const auto lines = wrap_text(row.label, kRowStyle, label_width, std::min<int64_t>(6, options.cell_size / 18 + 1));
    const int64_t text_height = static_cast<int64_t>(lines.size()) * line_height(kRowStyle);
    draw_lines(sheet, top + std::max<int64_t>(0, (options.cell_size - text_height) / 2), kSheetMargin, label_width,
               lines, kRowStyle, TextAlign::kLeft);
    for (size_t i = 0; i < row.cells.size(); ++i) draw_cell(sheet, top, column_left(i), row.cells[i], options);
    top += options.cell_size + label_room(row.cells, options.cell_size) + kGap;
  }
  return sheet;
}

std::vector<SheetCell> make_cells(const Tensor& batch, const std::vector<std::string>& labels) {
  TORCH_CHECK_VALUE(batch.dim() == 4, "expected a batch of pictures, got shape ", batch.sizes());
  std::vector<SheetCell> cells;
  for (int64_t i = 0; i < batch.size(0); ++i) {
    const auto index = static_cast<size_t>(i);
    cells.push_back({batch[i], index < labels.size() ? labels[index] : std::string()});
  }
  return cells;
}

}  // namespace dalle::generation

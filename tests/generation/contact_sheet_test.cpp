#include "dalle/generation/contact_sheet.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace dalle::generation {
namespace {

constexpr int64_t kCell = 40;

// A flat picture of a colour that nothing else on a sheet has.
Tensor flat(uint8_t red) { return blank_picture(8, 8, {red, 7, 99}); }

// Top, left, bottom and right (inclusive) of the pixels of flat(red); all -1 where there are none.
std::vector<int64_t> find(const Tensor& sheet, uint8_t red) {
  const Tensor mask = sheet.eq(at::tensor({red, uint8_t{7}, uint8_t{99}}, at::kByte)).all(-1);
  if (!mask.any().item<bool>()) return {-1, -1, -1, -1};
  const Tensor rows = mask.any(1).nonzero(), columns = mask.any(0).nonzero();
  return {rows.min().item<int64_t>(), columns.min().item<int64_t>(), rows.max().item<int64_t>(),
          columns.max().item<int64_t>()};
}

std::vector<SheetCell> flat_cells(int count, const std::string& label = "") {
  std::vector<SheetCell> cells;
  for (int i = 0; i < count; ++i) cells.push_back({flat(static_cast<uint8_t>(100 + i)), label, false});
  return cells;
}

TEST(ContactSheet, CellsComeInReadingOrderAtFullSize) {
  const Tensor sheet = contact_sheet(flat_cells(5), {.columns = 3, .cell_size = kCell});
  std::vector<std::vector<int64_t>> boxes;
  for (int i = 0; i < 5; ++i) {
    boxes.push_back(find(sheet, static_cast<uint8_t>(100 + i)));
    EXPECT_EQ(boxes[i][2] - boxes[i][0] + 1, kCell) << i;
    EXPECT_EQ(boxes[i][3] - boxes[i][1] + 1, kCell) << i;
  }
  EXPECT_EQ(boxes[0][0], boxes[2][0]);
  EXPECT_EQ(boxes[0][1], boxes[3][1]);
  EXPECT_GT(boxes[1][1], boxes[0][3]);
  EXPECT_GT(boxes[3][0], boxes[0][2]);
  EXPECT_EQ(sheet.size(1) - 1 - boxes[2][3], boxes[0][1]) << "equal margins";
  EXPECT_EQ(sheet.size(0) - 1 - boxes[3][2], boxes[0][0]);
}

TEST(ContactSheet, ColumnsAreChosenToLeaveFewGaps) {
  const auto columns_of = [](int count) {
    const Tensor sheet = contact_sheet(flat_cells(count), {.cell_size = kCell});
    int64_t columns = 0;
    while (columns < count && find(sheet, static_cast<uint8_t>(100 + columns))[0] == find(sheet, 100)[0]) ++columns;
    return columns;
  };
  EXPECT_EQ(columns_of(1), 1);
  EXPECT_EQ(columns_of(2), 2);
  EXPECT_EQ(columns_of(10), 5);
  EXPECT_EQ(columns_of(16), 4);
  EXPECT_EQ(columns_of(32), 8);
}

TEST(ContactSheet, LabelsAndTitlesTakeRoom) {
  const SheetOptions plain{.columns = 2, .cell_size = 200};
  SheetOptions titled = plain;
  titled.title = "title";
  const Tensor bare = contact_sheet(flat_cells(2), plain);
  EXPECT_GT(contact_sheet(flat_cells(2, "label"), plain).size(0), bare.size(0));
  EXPECT_GT(contact_sheet(flat_cells(2), titled).size(0), bare.size(0));
  EXPECT_EQ(contact_sheet(flat_cells(2), titled).size(1), bare.size(1));
}

TEST(ContactSheet, LabelsStayWithinTwoLinesOfTheirCell) {
  const std::string word = "word ";
  std::string text;
  for (int i = 0; i < 50; ++i) text += word;
  const Tensor two = contact_sheet(flat_cells(1, "word word word word word word"), {.cell_size = 100});
  const Tensor sheet = contact_sheet(flat_cells(1, text), {.cell_size = 100});
  EXPECT_EQ(sheet.sizes(), two.sizes());
  const std::vector<int64_t> box = find(sheet, 100);
  const Tensor left = sheet.slice(0, box[2] + 3).slice(1, 0, box[1] - 1);
  EXPECT_TRUE(left.eq(sheet[0][0]).all().item<bool>()) << "nothing is drawn left of the cell";
}

TEST(ContactSheet, HighlightDrawsAFrame) {
  std::vector<SheetCell> cells = flat_cells(1);
  const Tensor plain = contact_sheet(cells, {.cell_size = kCell});
  cells[0].highlighted = true;
  const Tensor marked = contact_sheet(cells, {.cell_size = kCell});
  EXPECT_EQ(find(marked, 100), find(plain, 100));
  EXPECT_GT(marked.ne(plain).any(-1).sum().item<int64_t>(), 4 * kCell);
}

TEST(ContactSheet, NarrowPicturesAreCentred) {
  const Tensor tall = blank_picture(40, 20, {100, 7, 99});
  const std::vector<int64_t> box = find(contact_sheet({{tall, "", false}}, {.cell_size = kCell}), 100);
  const std::vector<int64_t> full = find(contact_sheet(flat_cells(1), {.cell_size = kCell}), 100);
  EXPECT_EQ(box[2] - box[0], full[2] - full[0]);
  EXPECT_EQ(box[1] - full[1], 10);
  EXPECT_EQ(full[3] - box[3], 10);
}

TEST(ContactSheet, RowsLineUpUnderTheirColumns) {
  std::vector<SheetRow> rows = {{"first caption", flat_cells(3, "0.5")}, {"second", flat_cells(2)}};
  rows[1].cells[0].picture = flat(200);
  rows[1].cells[1].picture = flat(201);
  const Tensor sheet = labelled_rows(rows, {.cell_size = kCell, .column_titles = {"original", "best"}});
  EXPECT_EQ(find(sheet, 200)[1], find(sheet, 100)[1]);
  EXPECT_EQ(find(sheet, 201)[1], find(sheet, 101)[1]);
  EXPECT_GT(find(sheet, 200)[0], find(sheet, 100)[2] + 10);
  EXPECT_GT(find(sheet, 100)[1], SheetOptions().row_label_width);
}

TEST(ContactSheet, EmptyCellsKeepTheirPlace) {
  std::vector<SheetCell> cells = flat_cells(3);
  const std::vector<int64_t> third = find(contact_sheet(cells, {.columns = 3, .cell_size = kCell}), 102);
  cells[1].picture = Tensor();
  EXPECT_EQ(find(contact_sheet(cells, {.columns = 3, .cell_size = kCell}), 102), third);
}

TEST(ContactSheet, BatchesBecomeCells) {
  const Tensor batch = at::rand({3, 3, 8, 8});
  const auto cells = make_cells(batch, {"a", "b"});
  ASSERT_EQ(cells.size(), 3u);
  EXPECT_TRUE(at::equal(cells[2].picture, batch[2]));
  EXPECT_EQ(cells[1].label, "b");
  EXPECT_EQ(cells[2].label, "");
}

TEST(ContactSheet, NothingToShowIsRefused) {
  EXPECT_THROW(contact_sheet({}, {}), c10::ValueError);
  EXPECT_THROW(contact_sheet(flat_cells(1), {.cell_size = 0}), c10::ValueError);
  EXPECT_THROW(labelled_rows({}, {}), c10::ValueError);
}

}  // namespace
}  // namespace dalle::generation

// The sparse patterns against brute force over cells, the paper's counts and its figure 11.
#include "dalle/layers/attention_mask.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "dalle/core/str.h"

namespace dalle::layers {
namespace {

using ::testing::ElementsAre;

constexpr AttentionKind kKinds[] = {AttentionKind::kFull, AttentionKind::kRow, AttentionKind::kColumn,
                                    AttentionKind::kConv};
constexpr ConvMaskEdge kEdges[] = {ConvMaskEdge::kRaster, ConvMaskEdge::kClamp, ConvMaskEdge::kCyclic};

int64_t count(const Tensor& mask) { return mask.sum().item<int64_t>(); }

/// May image slot `query` see `key`, from rows and columns alone.
bool sees(AttentionKind kind, int64_t grid, const ConvMask& conv, int64_t query, int64_t key) {
  if (key > query) return false;
  const int64_t half = conv.kernel / 2, up = query / grid - key / grid, left = query % grid - key % grid;
  switch (kind) {
    case AttentionKind::kFull:
      return true;
    case AttentionKind::kRow:
      return query - key <= grid;
    case AttentionKind::kColumn:
      return left == 0;
    case AttentionKind::kConv:
      break;
  }
  for (int64_t dr = 0; dr <= half; ++dr) {
    for (int64_t dc = -half; dc <= (dr == 0 ? 0 : half); ++dc) {
      const bool hit[] = {query - key == dr * grid - dc,                         // raster: one line of cells
                          up == dr && left == -dc,                               // clamp: a plane
                          up == dr && ((left + dc) % grid + grid) % grid == 0};  // cyclic: a cylinder
      if (hit[static_cast<int>(conv.edge)]) return true;
    }
  }
  return false;
}

TEST(AttentionMask, EqualsBruteForceOnEverySmallGrid) {
  for (const AttentionKind kind : kKinds) {
    for (const ConvMaskEdge edge : kEdges) {
      for (const int64_t kernel : {1, 3, 5, 11}) {
        for (int64_t grid = 1; grid <= 7; ++grid) {
          const ConvMask conv{kernel, edge};
          for (int64_t query = 0; query < grid * grid; ++query) {
            std::vector<int64_t> expected;
            for (int64_t key = 0; key < grid * grid; ++key) {
              if (sees(kind, grid, conv, query, key)) expected.push_back(key);
            }
            ASSERT_EQ(visible_image_slots(kind, grid, conv, query), expected)
                << enum_name(kind) << " " << enum_name(edge) << " kernel " << kernel << " grid " << grid << " query "
                << query;
          }
        }
      }
    }
  }
}

TEST(AttentionMask, CombinesTextAndImageParts) {
  for (const AttentionKind kind : kKinds) {
    const SequenceLayout layout{3, 4};
    const Tensor mask = attention_mask(kind, layout, {.kernel = 5});
    ASSERT_EQ(mask.sizes(), (std::vector<int64_t>{19, 19}));
    ASSERT_EQ(mask.scalar_type(), at::kBool);
    EXPECT_TRUE(at::equal(mask.slice(0, 0, 3).slice(1, 0, 3), causal_mask(3)));
    EXPECT_EQ(count(mask.slice(0, 0, 3).slice(1, 3)), 0);       // text never sees the image
    EXPECT_EQ(count(mask.slice(0, 3).slice(1, 0, 3)), 16 * 3);  // the image sees all text
    for (int64_t query = 0; query < 16; ++query) {
      for (int64_t key = 0; key < 16; ++key) {
        EXPECT_EQ(mask[3 + query][3 + key].item<bool>(), sees(kind, 4, {.kernel = 5}, query, key));
      }
    }
  }
}

TEST(AttentionMask, EverySlotSeesItselfAndNothingLater) {
  for (const AttentionKind kind : kKinds) {
    for (const ConvMaskEdge edge : kEdges) {
      const Tensor mask = attention_mask(kind, {4, 6}, {.edge = edge});
      EXPECT_TRUE(mask.diagonal().all().item<bool>());
      EXPECT_EQ(count(mask.triu(1)), 0);
    }
  }
}

TEST(AttentionMask, CountsAtThePapersSize) {
  const SequenceLayout layout;  // 256 text slots, 32 x 32
  EXPECT_EQ(layout.length(), 1280);
  EXPECT_EQ(count(causal_mask(1280)), 819'840);
  const std::pair<AttentionKind, int64_t> expected[] = {{AttentionKind::kFull, 819'840 - 32'896 - 262'144},
                                                        {AttentionKind::kRow, 33'264},
                                                        {AttentionKind::kColumn, 16'896},
                                                        {AttentionKind::kConv, 57'169}};
  for (const auto& [kind, image] : expected) {
    const Tensor mask = attention_mask(kind, layout);
    EXPECT_EQ(count(mask.slice(0, 0, 256).slice(1, 0, 256)), 32'896) << enum_name(kind);
    EXPECT_EQ(count(mask.slice(0, 256).slice(1, 0, 256)), 262'144) << enum_name(kind);
    EXPECT_EQ(count(mask.slice(0, 256).slice(1, 256)), image) << enum_name(kind);
    EXPECT_EQ(count(mask), 32'896 + 262'144 + image) << enum_name(kind);
  }
}

TEST(AttentionMask, RowWindowIsThePapersExample) {
  // Figure 11 at W = 4: five slots with itself, the last one the same column of the row above.
  std::vector<size_t> sizes;
  for (int64_t query = 0; query < 16; ++query) {
    sizes.push_back(visible_image_slots(AttentionKind::kRow, 4, {}, query).size());
  }
  EXPECT_THAT(sizes, ElementsAre(1, 2, 3, 4, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5, 5));
  EXPECT_THAT(visible_image_slots(AttentionKind::kRow, 4, {}, 9), ElementsAre(5, 6, 7, 8, 9));
}

TEST(AttentionMask, ColumnIsTheTransposedBlocksReordered) {
  // Figure 11c: with image slots in column-major order each column is one lower-triangular block.
  const int64_t grid = 5;
  const Tensor image = attention_mask(AttentionKind::kColumn, {2, grid}).slice(0, 2).slice(1, 2);
  const Tensor order = at::arange(grid * grid).view({grid, grid}).t().reshape({-1});
  const Tensor transposed = image.index_select(0, order).index_select(1, order);
  Tensor blocks = at::zeros({grid * grid, grid * grid}, at::kBool);
  for (int64_t column = 0; column < grid; ++column) {
    const int64_t begin = column * grid, end = begin + grid;
    blocks.slice(0, begin, end).slice(1, begin, end).copy_(causal_mask(grid));
  }
  EXPECT_TRUE(at::equal(transposed, blocks));
}

TEST(AttentionMask, ConvSees61SlotsInTheMiddleAndDiffersAtTheEdge) {
  const int64_t middle = 20 * 32 + 16, left = 20 * 32, right = 20 * 32 + 31;
  for (const ConvMaskEdge edge : kEdges) {
    const auto slots = visible_image_slots(AttentionKind::kConv, 32, {11, edge}, middle);
    EXPECT_EQ(slots.size(), 61u);
    EXPECT_EQ(slots.front(), middle - 5 * 32 - 5);
    EXPECT_EQ(slots.back(), middle);
  }
  const auto size = [](ConvMaskEdge edge, int64_t query) {
    return visible_image_slots(AttentionKind::kConv, 32, {11, edge}, query).size();
  };
  EXPECT_EQ(size(ConvMaskEdge::kRaster, left), 61u);  // continues at the end of the rows above
  EXPECT_EQ(size(ConvMaskEdge::kClamp, left), 31u);   // 5 rows x 6 columns and itself
  EXPECT_EQ(size(ConvMaskEdge::kCyclic, left), 56u);  // 5 rows x 11, itself; the left half wraps past the query
  EXPECT_EQ(size(ConvMaskEdge::kRaster, right), 61u);
  EXPECT_EQ(size(ConvMaskEdge::kClamp, right), 36u);  // 5 rows x 6 columns, 6 of its own row
  EXPECT_EQ(size(ConvMaskEdge::kCyclic, right), 61u);
  const auto raster = visible_image_slots(AttentionKind::kConv, 32, {11, ConvMaskEdge::kRaster}, left);
  EXPECT_TRUE(std::find(raster.begin(), raster.end(), left - 5) != raster.end());
}

TEST(AttentionMask, PaperOrderOfLayerKinds) {
  std::map<AttentionKind, int> totals;
  for (int64_t layer = 0; layer < 64; ++layer) ++totals[paper_layer_kind(layer, 64)];
  EXPECT_EQ(totals[AttentionKind::kRow], 47);
  EXPECT_EQ(totals[AttentionKind::kColumn], 16);
  EXPECT_EQ(totals[AttentionKind::kConv], 1);
  EXPECT_EQ(paper_layer_kind(63, 64), AttentionKind::kConv);
  const AttentionKind start[] = {AttentionKind::kRow, AttentionKind::kColumn, AttentionKind::kRow, AttentionKind::kRow};
  for (int64_t layer = 0; layer < 63; ++layer) EXPECT_EQ(paper_layer_kind(layer, 64), start[layer % 4]) << layer;
  EXPECT_EQ(paper_layer_kind(0, 1), AttentionKind::kConv);
  EXPECT_EQ(paper_layer_kind(0, 2), AttentionKind::kRow);
  EXPECT_EQ(paper_layer_kind(1, 2), AttentionKind::kConv);  // the last layer wins over the rule
  EXPECT_EQ(paper_layer_kind(5, 6), AttentionKind::kConv);
  EXPECT_EQ(paper_layer_kind(5, 7), AttentionKind::kColumn);
}

}  // namespace
}  // namespace dalle::layers

// What a cache's positions hold when a slot reads them is exactly what the mask lets the slot see.
#include "dalle/generation/cache_layout.h"

#include <gtest/gtest.h>

#include <set>
#include <vector>

namespace dalle::generation {
namespace {

using enum layers::AttentionKind;
using layers::ConvMask;
using layers::ConvMaskEdge;

/// Slots that the spans of `slot` hold, with caches overwritten as decoding does, and itself; -1 where nothing was written.
std::multiset<int64_t> read_slots(const CacheLayout& layout, OwnSlot own, std::vector<int64_t>& held, int64_t slot) {
  int64_t& place = held.at(static_cast<size_t>(layout.position(slot)));
  if (own == OwnSlot::kRead) place = slot;
  std::multiset<int64_t> read;
  if (own == OwnSlot::kApart) read.insert(slot);
  for (const CacheSpan& span : layout.visible(slot)) {
    for (int64_t i = 0; i < span.size; ++i) read.insert(held.at(static_cast<size_t>(span.begin + i)));
  }
  place = slot;
  return read;
}

class CacheLayoutOf : public ::testing::TestWithParam<OwnSlot> {};

TEST_P(CacheLayoutOf, EverySlotReadsExactlyWhatItsMaskShows) {
  const OwnSlot own = GetParam();
  for (const auto& [kind, name] : EnumNames<layers::AttentionKind>::values) {
    for (const auto& [edge, edge_name] : EnumNames<ConvMaskEdge>::values) {
      for (const int64_t kernel : {1, 3, 5, 11}) {
        for (const int64_t grid : {1, 2, 3, 4, 5, 6, 8, 16}) {
          const ConvMask conv{kernel, edge};
          const CacheLayout layout(kind, grid, conv, own);
          std::vector<int64_t> held(static_cast<size_t>(layout.capacity()), -1);
          int64_t most = 0;
          for (int64_t slot = 0; slot < grid * grid; ++slot) {
            const auto seen = layers::visible_image_slots(kind, grid, conv, slot);
            most = std::max(most, static_cast<int64_t>(seen.size()));
            ASSERT_EQ(read_slots(layout, own, held, slot), std::multiset<int64_t>(seen.begin(), seen.end()))
                << name << " " << edge_name << " " << kernel << " grid " << grid << " slot " << slot;
          }
          EXPECT_EQ(layout.max_visible(), own == OwnSlot::kRead ? most : most - 1);
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(OwnSlot, CacheLayoutOf, ::testing::Values(OwnSlot::kRead, OwnSlot::kApart));

TEST(CacheLayout, RingsWithoutTheOwnSlotAreOfWholeRowsAndWhatASlotSeesLiesTogether) {
  const ConvMask conv{11, ConvMaskEdge::kRaster};
  const CacheLayout row(kRow, 32, conv, OwnSlot::kApart), window(kConv, 32, conv, OwnSlot::kApart);
  EXPECT_EQ(row.capacity(), 32);
  EXPECT_EQ(row.visible(100).size(), 1U);
  EXPECT_EQ(window.capacity(), 6 * 32);
  const auto spans = window.visible(10 * 32 + 16);
  EXPECT_LE(spans.back().begin + spans.back().size - spans.front().begin, 6 * 11);
}

TEST(CacheLayout, HoldsWhatThePaperSizeNeedsAndNoMore) {
  const ConvMask conv{11, ConvMaskEdge::kRaster};
  EXPECT_EQ(CacheLayout(kFull, 32, conv).capacity(), 1024);
  EXPECT_EQ(CacheLayout(kRow, 32, conv).capacity(), 33);
  EXPECT_EQ(CacheLayout(kColumn, 32, conv).capacity(), 1024);
  EXPECT_EQ(CacheLayout(kConv, 32, conv).capacity(), 5 * 32 + 6);
  EXPECT_EQ(CacheLayout(kConv, 32, conv).max_visible(), 61);
  EXPECT_EQ(CacheLayout(kRow, 32, conv).max_visible(), 33);
}

TEST(CacheLayout, RowsAndColumnsAreReadInOneStretch) {
  const ConvMask conv{11, ConvMaskEdge::kRaster};
  for (const auto kind : {kFull, kRow, kColumn}) {
    const CacheLayout layout(kind, 8, conv);
    for (int64_t slot = 0; slot < 64; ++slot) EXPECT_EQ(layout.visible(slot).size(), 1U);
  }
  EXPECT_EQ(CacheLayout(kColumn, 8, conv).visible(3 * 8 + 5)[0], (CacheSpan{5 * 8, 4}));
}

TEST(CacheLayout, BytesOfTheTwelveBillionModel) {
  // 47 row, 16 column and 1 conv layer of 33, 1024 and 166 positions, keys and values of 3968 numbers.
  const models::PriorConfig config;
  EXPECT_EQ(bytes_per_candidate(config, at::kBFloat16), 2 * (47 * 33 + 16 * 1024 + 166) * int64_t{3968} * 2);
  EXPECT_EQ(bytes_per_candidate(config, at::kFloat), 2 * bytes_per_candidate(config, at::kBFloat16));
  EXPECT_EQ(text_cache_bytes(config, at::kBFloat16), 2 * 64 * 256 * int64_t{3968} * 2);
}

TEST(CacheLayout, SlotsOutsideTheGridAreRefused) {
  const CacheLayout layout(kRow, 4, {});
  EXPECT_THROW(layout.visible(16), std::out_of_range);
  EXPECT_THROW(layout.visible(-1), std::out_of_range);
}

}  // namespace
}  // namespace dalle::generation

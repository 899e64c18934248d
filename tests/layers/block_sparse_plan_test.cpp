// Plans against the masks they were made of.
#include "dalle/layers/block_sparse_plan.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <limits>
#include <numeric>

#include "support/tensor_matchers.h"

namespace dalle::layers {
namespace {

constexpr AttentionKind kKinds[] = {AttentionKind::kFull, AttentionKind::kRow, AttentionKind::kColumn,
                                    AttentionKind::kConv};

std::vector<int64_t> natural_order(int64_t length) {
  std::vector<int64_t> order(static_cast<size_t>(length));
  std::iota(order.begin(), order.end(), 0);
  return order;
}

// The mask that a plan stands for, in the positions' own order; each pair at most once.
Tensor mask_of(const BlockSparsePlan& plan) {
  Tensor mask = at::zeros({plan.length, plan.length}, at::kBool);
  for (const auto& block : plan.blocks) {
    int64_t column = 0;
    for (const auto& stretch : block.stretches) {
      EXPECT_EQ(stretch.column, column);
      column += stretch.width;
      for (int64_t q = 0; q < block.num_queries; ++q) {
        for (int64_t k = 0; k < stretch.width; ++k) {
          const float bias =
              stretch.bias < 0 ? 0.0f : plan.biases[static_cast<size_t>(stretch.bias + q * stretch.width + k)];
          if (bias == -std::numeric_limits<float>::infinity()) continue;
          EXPECT_EQ(bias, 0.0f);
          Tensor pair = mask[plan.order[static_cast<size_t>(block.query + q)]]
                            [plan.order.at(static_cast<size_t>(stretch.key + k))];
          EXPECT_FALSE(pair.item<bool>());
          pair.fill_(true);
        }
      }
    }
    EXPECT_EQ(block.width, column);
    EXPECT_LE(block.width, plan.max_width);
  }
  return mask;
}

TEST(BlockSparsePlan, StandsForItsMaskAtEveryKindGridAndLength) {
  for (const SequenceLayout layout : {SequenceLayout{5, 3}, {16, 4}, {7, 8}, {33, 5}}) {
    for (const auto kind : kKinds) {
      for (const int64_t length : {layout.length(), layout.length() - 3, layout.text_context}) {
        const Tensor mask = attention_mask(kind, layout).slice(0, 0, length).slice(1, 0, length);
        const auto plan = make_block_sparse_plan(mask, attention_order(kind, layout, length));
        EXPECT_TRUE(testing::bitwise_equal(mask_of(plan), mask)) << layout.grid_size << " " << length;
      }
    }
  }
}

TEST(BlockSparsePlan, ComputesLittleMoreThanTheMaskLeaves) {
  const SequenceLayout layout{256, 32};
  const std::pair<AttentionKind, double> most[] = {{AttentionKind::kFull, 1.03},
                                                   {AttentionKind::kRow, 1.12},
                                                   {AttentionKind::kColumn, 1.07},
                                                   {AttentionKind::kConv, 1.41}};
  for (const auto& [kind, bound] : most) {
    const Tensor mask = attention_mask(kind, layout);
    const auto plan = make_block_sparse_plan(mask, attention_order(kind, layout, layout.length()));
    const auto visible = static_cast<double>(mask.sum().item<int64_t>());
    EXPECT_LT(static_cast<double>(plan.computed_pairs()) / visible, bound) << enum_name(kind);
  }
}

TEST(BlockSparsePlan, EqualTilesAreKeptOnce) {
  const SequenceLayout layout{256, 32};
  const auto plan = make_block_sparse_plan(attention_mask(AttentionKind::kRow, layout), natural_order(layout.length()));
  // A few kinds of tiles for 40 blocks: the diagonal of the text, the first row, all others.
  EXPECT_LT(plan.biases.size(), 5U * 32 * 64);
}

TEST(BlockSparsePlan, ColumnsComeTogether) {
  EXPECT_EQ(attention_order(AttentionKind::kColumn, {2, 2}, 6), (std::vector<int64_t>{0, 1, 2, 4, 3, 5}));
  EXPECT_EQ(attention_order(AttentionKind::kColumn, {2, 2}, 5), (std::vector<int64_t>{0, 1, 2, 4, 3}));
  EXPECT_EQ(attention_order(AttentionKind::kRow, {2, 2}, 6), natural_order(6));
}

TEST(BlockSparsePlan, RefusesWhatIsNoMask) {
  EXPECT_THROW(make_block_sparse_plan(causal_mask(4), natural_order(3)), c10::ValueError);
  EXPECT_THROW(make_block_sparse_plan(causal_mask(4), {0, 1, 1, 2}), c10::ValueError);
  EXPECT_THROW(make_block_sparse_plan(causal_mask(4).to(at::kFloat), natural_order(4)), c10::ValueError);
  Tensor blind = causal_mask(4);
  blind[2][2] = false;
  EXPECT_THROW(make_block_sparse_plan(blind, natural_order(4)), c10::ValueError);
}

}  // namespace
}  // namespace dalle::layers

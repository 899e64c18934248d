// A visibility mask as work for attention: for each block of queries the stretches of keys that any of them sees, so that
// nothing else is computed. Made once for a mask, used by every layer, head and step with it.
#pragma once

#include <cstdint>
#include <vector>

#include "dalle/layers/attention_mask.h"

namespace dalle::layers {

struct BlockSparsePlan {
  static constexpr int64_t kQueries = 32;  // of a block
  static constexpr int64_t kKeys = 16;     // stretches begin and end at multiples of this

  /// Keys [key, key + width) in the plan's order; their scores lie from `column` on in the block's rows.
  struct Stretch {
    int64_t key = 0, width = 0, column = 0;
    int64_t bias = -1;  // in biases: [kQueries, width] of 0 and -inf; -1 where every query sees every key
  };
  struct Block {
    int64_t query = 0, num_queries = 0;  // the first one, in the plan's order; fewer than kQueries at the end only
    int64_t width = 0;                   // of all stretches
    std::vector<Stretch> stretches;
  };

  int64_t length = 0;
  int64_t max_width = 0;
  std::vector<int64_t> order;  // order[i]: the position that comes i-th
  std::vector<Block> blocks;
  std::vector<float> biases;  // equal tiles once

  /// Length up to a whole number of blocks.
  int64_t padded_length() const { return (length + kQueries - 1) / kQueries * kQueries; }
  /// Scores that are computed: at least the mask's.
  int64_t computed_pairs() const;
};

/// visible_LL: bool, true where the row's position may see the column's; each sees itself at least. `order` is a permutation
/// of the positions, best one that brings together what sees the same. Throws c10::ValueError for others.
BlockSparsePlan make_block_sparse_plan(const Tensor& visible_LL, std::vector<int64_t> order);

/// The order for attention_mask(kind, layout) cut to `length` positions: text, then the image, by columns for kColumn.
std::vector<int64_t> attention_order(AttentionKind kind, const SequenceLayout& layout, int64_t length);

}  // namespace dalle::layers

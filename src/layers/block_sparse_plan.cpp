#include "dalle/layers/block_sparse_plan.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>

namespace dalle::layers {
namespace {

constexpr int64_t kQueries = BlockSparsePlan::kQueries, kKeys = BlockSparsePlan::kKeys;

enum class Seen { kNone, kPartly, kWholly };

class Planner {
 public:
  Planner(const Tensor& visible_LL, BlockSparsePlan& plan)
      : visible_(visible_LL.const_data_ptr<bool>()), length_(visible_LL.size(0)), plan_(plan) {}

  void run() {
    for (int64_t query = 0; query < length_; query += kQueries) {
      BlockSparsePlan::Block block{.query = query, .num_queries = std::min(kQueries, length_ - query)};
      for (int64_t key = 0; key < length_; key += kKeys) {
        const Seen seen = look(block, key);
        if (seen == Seen::kNone) continue;
        const bool is_partial = seen == Seen::kPartly;
        auto& stretches = block.stretches;
        const bool goes_on = !stretches.empty() && stretches.back().key + stretches.back().width == key &&
                             (stretches.back().bias == kPending) == is_partial;
        if (!goes_on) {
          stretches.push_back({.key = key, .column = block.width, .bias = is_partial ? kPending : kNoBias});
        }
        stretches.back().width += kKeys;
        block.width += kKeys;
      }
      for (auto& stretch : block.stretches) {
        if (stretch.bias == kPending) stretch.bias = bias(block, stretch);
      }
      plan_.max_width = std::max(plan_.max_width, block.width);
      plan_.blocks.push_back(std::move(block));
    }
  }

 private:
  static constexpr int64_t kNoBias = -1, kPending = -2;

  bool sees(int64_t query, int64_t key) const {
    return query < length_ && key < length_ && visible_[query * length_ + key];
  }

  Seen look(const BlockSparsePlan::Block& block, int64_t key) const {
    bool any = false, all = true;
    for (int64_t q = block.query; q < block.query + block.num_queries; ++q) {
      for (int64_t k = key; k < key + kKeys; ++k) {
        any = any || sees(q, k);
        all = all && sees(q, k);
      }
    }
    return all ? Seen::kWholly : any ? Seen::kPartly : Seen::kNone;
  }

  int64_t bias(const BlockSparsePlan::Block& block, const BlockSparsePlan::Stretch& stretch) {
    std::vector<float> tile;
    for (int64_t q = block.query; q < block.query + kQueries; ++q) {
      for (int64_t k = stretch.key; k < stretch.key + stretch.width; ++k) {
        tile.push_back(sees(q, k) ? 0.0f : -std::numeric_limits<float>::infinity());
      }
    }
    const auto [found, is_new] = tiles_.try_emplace(tile, static_cast<int64_t>(plan_.biases.size()));
    if (is_new) plan_.biases.insert(plan_.biases.end(), tile.begin(), tile.end());
    return found->second;
  }

  const bool* visible_;
  int64_t length_;
  BlockSparsePlan& plan_;
  std::map<std::vector<float>, int64_t> tiles_;
};

}  // namespace

int64_t BlockSparsePlan::computed_pairs() const {
  return std::accumulate(blocks.begin(), blocks.end(), int64_t{0},
                         [](int64_t sum, const Block& block) { return sum + kQueries * block.width; });
}

BlockSparsePlan make_block_sparse_plan(const Tensor& visible_LL, std::vector<int64_t> order) {
  const int64_t length = visible_LL.size(0);
  TORCH_CHECK_VALUE(visible_LL.dim() == 2 && visible_LL.size(1) == length && visible_LL.scalar_type() == at::kBool &&
                        visible_LL.diagonal().all().item<bool>(),
                    "[attention plan] expected a bool mask [L, L] with every position visible to itself, got ",
                    visible_LL.sizes());
  std::vector<int64_t> sorted = order, all(static_cast<size_t>(length));
  std::sort(sorted.begin(), sorted.end());
  std::iota(all.begin(), all.end(), 0);
  TORCH_CHECK_VALUE(sorted == all, "[attention plan] the order is not a permutation of ", length, " positions");
  const Tensor index = at::tensor(order, at::kLong);
  const Tensor ordered = visible_LL.cpu().index_select(0, index).index_select(1, index).contiguous();
  BlockSparsePlan plan{.length = length, .order = std::move(order)};
  Planner(ordered, plan).run();
  return plan;
}

std::vector<int64_t> attention_order(AttentionKind kind, const SequenceLayout& layout, int64_t length) {
  std::vector<int64_t> order(static_cast<size_t>(layout.text_context));
  std::iota(order.begin(), order.end(), 0);
  const int64_t grid = layout.grid_size;
  for (int64_t i = 0; i < layout.image_context(); ++i) {
    const int64_t slot = kind == AttentionKind::kColumn ? i % grid * grid + i / grid : i;
    order.push_back(layout.text_context + slot);
  }
  std::erase_if(order, [&](int64_t position) { return position >= length; });
  return order;
}

}  // namespace dalle::layers

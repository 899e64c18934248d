#include "bpe_merge.h"

#include <queue>

namespace dalle::text {
namespace {

/// Longer runs go through the heap.
constexpr size_t kShortRun = 48;

bool is_skipped(double dropout, RandomStream* stream) { return stream != nullptr && stream->uniform() < dropout; }

/// Symbols of a long run as a doubly linked list.
struct Links {
  int previous;
  int next;
};

struct MergeCandidate {
  float score;
  int left;
  int right;
  int32_t left_id, right_id;  // a candidate whose symbols have changed since is stale
  int32_t piece;
  bool operator<(const MergeCandidate& other) const {
    return score < other.score || (score == other.score && left > other.left);
  }
};

}  // namespace

void merge_neighbours(const MergeTable& table, double dropout, RandomStream* stream, std::vector<Symbol>& symbols,
                      std::vector<int32_t>& scratch) {
  if (symbols.size() > kShortRun) return merge_neighbours_by_heap(table, dropout, stream, symbols);
  if (symbols.size() < 2) return;
  std::vector<int32_t>& candidates = scratch;  // [i]: the piece of symbols i and i + 1, or -1
  const auto propose = [&](size_t i) { candidates[i] = table.merged(symbols[i].id, symbols[i + 1].id); };
  candidates.resize(symbols.size() - 1);
  for (size_t i = 0; i < candidates.size(); ++i) propose(i);
  while (true) {
    size_t best = candidates.size();
    float best_score = 0;
    for (size_t i = 0; i < candidates.size(); ++i) {
      if (candidates[i] < 0) continue;
      const float score = table.score(candidates[i]);
      if (best < candidates.size() && score <= best_score) continue;
      best = i;
      best_score = score;
    }
    if (best == candidates.size()) return;
    if (is_skipped(dropout, stream)) {
      candidates[best] = -1;
      continue;
    }
    const auto at = static_cast<std::ptrdiff_t>(best);
    symbols[best].id = candidates[best];
    symbols.erase(symbols.begin() + at + 1);
    candidates.erase(candidates.begin() + at);
    if (best > 0) propose(best - 1);
    if (best < candidates.size()) propose(best);
  }
}

void merge_neighbours_by_heap(const MergeTable& table, double dropout, RandomStream* stream,
                              std::vector<Symbol>& symbols) {
  constexpr int32_t kGone = -2;
  const auto count = static_cast<int>(symbols.size());
  std::vector<Links> links(symbols.size());
  std::priority_queue<MergeCandidate> queue;
  const auto id = [&](int i) -> int32_t& { return symbols[static_cast<size_t>(i)].id; };
  const auto link = [&](int i) -> Links& { return links[static_cast<size_t>(i)]; };
  const auto propose = [&](int left, int right) {
    if (left < 0 || right == count) return;
    const int32_t piece = table.merged(id(left), id(right));
    if (piece >= 0) queue.push({table.score(piece), left, right, id(left), id(right), piece});
  };
  for (int i = 0; i < count; ++i) {
    link(i) = {i - 1, i + 1};
    propose(i - 1, i);
  }
  while (!queue.empty()) {
    const MergeCandidate best = queue.top();
    queue.pop();
    if (id(best.left) != best.left_id || id(best.right) != best.right_id) continue;
    if (is_skipped(dropout, stream)) continue;
    id(best.left) = best.piece;
    id(best.right) = kGone;
    const int next = link(best.right).next;
    link(best.left).next = next;
    if (next < count) link(next).previous = best.left;
    propose(link(best.left).previous, best.left);
    propose(best.left, next);
  }
  std::erase_if(symbols, [](const Symbol& symbol) { return symbol.id == kGone; });
}

}  // namespace dalle::text

// The merge loop of byte-pair encoding.
#pragma once

#include <vector>

#include "dalle/core/random.h"
#include "merge_table.h"

namespace dalle::text {

/// Merges the neighbours whose piece has the highest score, the leftmost on ties, until nothing merges; each candidate
/// is skipped with probability `dropout`, drawn from `stream` in the order in which candidates come up (`stream` may be
/// null where dropout is 0). `scratch` is working memory.
void merge_neighbours(const MergeTable& table, double dropout, RandomStream* stream, std::vector<Symbol>& symbols,
                      std::vector<int32_t>& scratch);

/// The same with a heap of candidates, n log n in the number of symbols: for long runs, and to test the other against.
void merge_neighbours_by_heap(const MergeTable& table, double dropout, RandomStream* stream,
                              std::vector<Symbol>& symbols);

}  // namespace dalle::text

// What reranking gains (paper, sec. 2.6 and figure 6), by a judge that is not the reranker.
#pragma once

#include <cstdint>
#include <vector>

namespace dalle::evaluation {

struct RerankingGain {
  double best = 0;            // mean over captions of the judge's score of the candidate that was ranked first
  double random = 0;          // of a random candidate: its expectation, the mean over all candidates
  double gain = 0;            // mean of best - random, caption by caption
  double standard_error = 0;  // of `gain`, from its spread over captions; NaN for one caption

  bool is_significant() const { return gain > 2 * standard_error; }
};

/// `judged[c][n]`: the judge's score of the candidate that the reranker put at place n for caption c. Throws c10::ValueError
/// where there is no caption, or a caption without candidates.
RerankingGain reranking_gain(const std::vector<std::vector<double>>& judged);

}  // namespace dalle::evaluation

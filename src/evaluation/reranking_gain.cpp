#include "dalle/evaluation/reranking_gain.h"

#include <c10/util/Exception.h>

#include <cmath>
#include <numeric>

namespace dalle::evaluation {

RerankingGain reranking_gain(const std::vector<std::vector<double>>& judged) {
  TORCH_CHECK_VALUE(!judged.empty(), "reranking_gain: expected captions, got none");
  const double count = static_cast<double>(judged.size());
  RerankingGain result;
  std::vector<double> gains;
  for (const auto& candidates : judged) {
    TORCH_CHECK_VALUE(!candidates.empty(), "reranking_gain: expected candidates for each caption, got none");
    const double mean =
        std::accumulate(candidates.begin(), candidates.end(), 0.0) / static_cast<double>(candidates.size());
    result.best += candidates.front() / count;
    result.random += mean / count;
    gains.push_back(candidates.front() - mean);
  }
  result.gain = std::accumulate(gains.begin(), gains.end(), 0.0) / count;
  double squares = 0;
  for (const double gain : gains) squares += (gain - result.gain) * (gain - result.gain);
  result.standard_error = std::sqrt(squares / (count - 1) / count);  // one caption: 0 / 0
  return result;
}

}  // namespace dalle::evaluation

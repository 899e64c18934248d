// Retrieval among pairs: how often a picture finds its caption, and pictures find each other.
#pragma once

#include <cstdint>

#include "dalle/core/tensor.h"

namespace dalle::evaluation {

/// Recall@k of retrieval both ways: the share of rows whose own partner is among the k most similar. Unit features
/// [N, E]. Ties count against.
struct Recall {
  double image_to_text = 0;
  double text_to_image = 0;
};
Recall recall_at(const Tensor& image_features, const Tensor& text_features, int64_t k);

/// Share of `pictures` whose nearest among `originals` is their own (same row), by L2 between pixels averaged to a
/// 16 x 16 grid: a judge that knows nothing of CLIP. [N, 3, S, S] each; smaller pictures are compared as they are.
double nearest_original_rate(const Tensor& pictures, const Tensor& originals);

}  // namespace dalle::evaluation

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

/// Row of `originals` that is nearest to each picture, i64 [N], by L2 between pixels averaged to a 16 x 16 grid: a judge that
/// knows nothing of CLIP. [N, 3, S, S] and [M, 3, S, S] in [0, 1]; smaller pictures are compared as they are.
Tensor nearest_original(const Tensor& pictures, const Tensor& originals);

/// Share of `pictures` whose nearest among `originals` is their own (same row). [N, 3, S, S] each.
double nearest_original_rate(const Tensor& pictures, const Tensor& originals);

}  // namespace dalle::evaluation

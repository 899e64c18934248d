// Token cross-entropy summed, not averaged: the caller divides by a count over the whole global batch.
#pragma once

#include "dalle/core/tensor.h"

namespace dalle::layers {

/// Sum of -log softmax(logits)[target] over positions with target >= 0, in f32. logits [..., V], targets [...] int64.
Tensor cross_entropy_sum(const Tensor& logits, const Tensor& targets);

/// The same per position, 0 where target < 0.
Tensor cross_entropy_each(const Tensor& logits, const Tensor& targets);

}  // namespace dalle::layers

// Drawing the next token of one candidate from its logits, on the CPU: temperature, top-k, top-p, Gumbel noise and argmax,
// row by row and without a sort. What filter_logits() (logits_filter.h) does by operators on any device.
#pragma once

#include <cstdint>
#include <span>

#include "dalle/core/random.h"
#include "dalle/generation/logits_filter.h"

namespace dalle::generation {

/// In place: null + guidance (conditional - null), classifier-free guidance.
void guide(std::span<float> conditional, std::span<const float> null, float guidance);

/// In place: logits / temperature, and -inf where a token is filtered out. Top-k keeps every token that ties with the k-th;
/// top-p keeps the smallest set of most probable tokens whose probability reaches top_p, of equals the first.
void filter_row(std::span<float> logits, const FilterOptions& options);

/// The index of the largest logits[i] + Gumbel noise, the first of equals: a draw from softmax(logits). The noise is
/// elements offset .. of the stream `key`. Numbers that are not finite (all -inf, or NaN) give 0.
int64_t gumbel_argmax(std::span<const float> logits, RandomKey key, int64_t offset);

/// ln of the softmax of logits at `token`.
double log_probability(std::span<const float> logits, int64_t token);

}  // namespace dalle::generation

#include "dalle/generation/token_draw.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "dalle/core/avx512.h"
#include "dalle/core/random_fill.h"
#include "dalle/core/vector_math.h"
#include "dalle/core/vectorise.h"
#include "row_kernels_avx512.h"

namespace dalle::generation {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();
constexpr int64_t kDrawLanes = 16;

// Numbers in an order that unsigned integers have too.
uint32_t key_of(float x) {
  const auto bits = std::bit_cast<uint32_t>(x);
  return bits ^ ((bits >> 31) != 0 ? 0xFFFFFFFFu : 0x80000000u);
}

DALLE_VECTORISED void divide(std::span<float> x, float divisor) {
  for (float& value : x) value /= divisor;
}

DALLE_VECTORISED float maximum(const float* x, int64_t size) {
  constexpr int64_t kLanes = 4 * kDrawLanes;  // registers that need not wait for each other
  float lanes[kLanes];
  std::fill_n(lanes, kLanes, kNever);
  int64_t i = 0;
  for (; i + kLanes <= size; i += kLanes) {
    for (int64_t lane = 0; lane < kLanes; ++lane) lanes[lane] = x[i + lane] > lanes[lane] ? x[i + lane] : lanes[lane];
  }
  for (; i < size; ++i) lanes[0] = std::max(lanes[0], x[i]);
  return *std::max_element(lanes, lanes + kLanes);
}

// Sums of up to so many exponentials in f32, the sums of these in f64.
constexpr int64_t kSumStretch = 512;

DALLE_VECTORISED float portable_sum_of_exponentials(const float* x, int64_t size, float shift) {
  float lanes[kDrawLanes] = {};
  int64_t i = 0;
  for (; i + kDrawLanes <= size; i += kDrawLanes) {
    for (int64_t lane = 0; lane < kDrawLanes; ++lane) lanes[lane] += vector_exp(x[i + lane] - shift);
  }
  for (; i < size; ++i) lanes[0] += vector_exp(x[i] - shift);
  float sum = 0;
  for (const float lane : lanes) sum += lane;
  return sum;
}

float sum_of_exponentials(const float* x, int64_t size, float shift) {
  return (detail::has_row_avx512() ? detail::avx512_sum_of_exponentials : portable_sum_of_exponentials)(x, size, shift);
}

// out = exp(x - shift).
DALLE_VECTORISED void exponentials_into(const float* x, int64_t size, float shift, float* out) {
  for (int64_t i = 0; i < size; ++i) out[i] = vector_exp(x[i] - shift);
}

struct Threshold {
  uint32_t key;       // of the last number taken
  double mass_above;  // weight of the numbers greater than it
};

// The numbers from the greatest down whose weights together reach `target`: three rounds of counting by 11, 11 and 10 bits of
// the key. weights may be null: 1 each.
Threshold reach(std::span<const float> x, const float* weights, double target) {
  constexpr int kShift[] = {21, 10, 0}, kBits[] = {11, 11, 10};
  Threshold found{0, 0};
  uint32_t known = 0;  // bits of the key decided so far
  for (int round = 0; round < 3; ++round) {
    const uint32_t buckets = 1u << kBits[round];
    double mass[1 << 11] = {};
    for (size_t i = 0; i < x.size(); ++i) {
      const uint32_t key = key_of(x[i]);
      if ((key & known) != (found.key & known)) continue;
      mass[(key >> kShift[round]) & (buckets - 1)] += weights == nullptr ? 1.0 : static_cast<double>(weights[i]);
    }
    uint32_t bucket = buckets - 1;
    uint32_t last_filled = bucket;
    for (;; --bucket) {
      if (mass[bucket] > 0) last_filled = bucket;
      // Rounding may leave the sum of all a little below the target: the lowest filled bucket then.
      if (found.mass_above + mass[bucket] >= target || bucket == 0) break;
      found.mass_above += mass[bucket];
    }
    if (mass[bucket] == 0) {
      bucket = last_filled;
      found.mass_above -= mass[bucket];
    }
    found.key |= bucket << kShift[round];
    known |= (buckets - 1) << kShift[round];
  }
  return found;
}

constexpr int64_t kStretch = 64;     // tokens with one bound
constexpr int64_t kStretches = 256;  // with bounds at a time

DALLE_VECTORISED void portable_maxima(const float* x, int64_t stretches, float* out) {
  for (int64_t i = 0; i < stretches; ++i) out[i] = maximum(x + i * kStretch, kStretch);
}

DALLE_AVX512 void avx512_maxima(const float* x, int64_t stretches, float* out) {
  for (int64_t i = 0; i < stretches; ++i, x += kStretch) {
    __m512 largest = _mm512_set1_ps(kNever);
    for (int64_t c = 0; c < kStretch; c += 16) largest = _mm512_max_ps(_mm512_loadu_ps(x + c), largest);  // not NaN
    out[i] = _mm512_reduce_max_ps(largest);
  }
}

// The largest logit of each stretch; NaN counts for nothing.
void stretch_maxima(const float* x, int64_t size, float* out) {
  static const bool has_avx512 = __builtin_cpu_supports("x86-64-v4") != 0;
  const int64_t whole = size / kStretch;
  (has_avx512 ? avx512_maxima : portable_maxima)(x, whole, out);
  if (whole * kStretch < size) out[whole] = maximum(x + whole * kStretch, size - whole * kStretch);
}

// bounds = logits + Gumbel noise of the largest uniform numbers, given in `bounds`.
DALLE_VECTORISED void add_largest_noise(const float* logits, int64_t stretches, float* bounds) {
  for (int64_t i = 0; i < stretches; ++i) bounds[i] = logits[i] - vector_log(-vector_log(bounds[i]));
}

struct Winner {
  float score = kNever;
  int64_t index = 0;
};

// Noise rises with the uniform number that it is made of. So a stretch whose largest logit with its largest noise stays below
// the best score so far has no winner; after the stretch with the largest bound, few are left to look into.
void draw_among(const float* logits, int64_t size, RandomKey key, int64_t offset, int64_t first_index, Winner& winner) {
  constexpr float kSlack = 1e-3f;  // more than what the noise's own logarithms and sums round
  const int64_t stretches = (size + kStretch - 1) / kStretch;
  float bounds[kStretches], maxima[kStretches], noise[kStretch];
  largest_uniforms(key, offset, size, bounds);
  stretch_maxima(logits, size, maxima);
  add_largest_noise(maxima, stretches, bounds);
  const auto examine = [&](int64_t stretch) {
    const int64_t first = stretch * kStretch, count = std::min(kStretch, size - first);
    fill_gumbel(key, offset + first, count, noise);
    for (int64_t i = first; i < first + count; ++i) {
      const float score = logits[i] + noise[i - first];
      const int64_t index = first_index + i;
      if (score > winner.score || (score == winner.score && index < winner.index)) winner = {score, index};
    }
  };
  const int64_t likeliest = std::max_element(bounds, bounds + stretches) - bounds;
  examine(likeliest);
  for (int64_t stretch = 0; stretch < stretches; ++stretch) {
    if (stretch == likeliest || !(bounds[stretch] >= winner.score - kSlack * (1 + std::abs(winner.score)))) continue;
    examine(stretch);
  }
}

}  // namespace

DALLE_VECTORISED void guide(std::span<float> conditional, std::span<const float> null, float guidance) {
  for (size_t i = 0; i < conditional.size(); ++i) conditional[i] = null[i] + (conditional[i] - null[i]) * guidance;
}

void filter_row(std::span<float> logits, const FilterOptions& options) {
  if (options.temperature != 1) divide(logits, static_cast<float>(options.temperature));
  if (options.top_k > 0 && options.top_k < static_cast<int64_t>(logits.size())) {
    const uint32_t kth = reach(logits, nullptr, static_cast<double>(options.top_k)).key;
    for (float& x : logits) x = key_of(x) < kth ? kNever : x;
  }
  if (options.top_p < 1) {
    const auto size = static_cast<int64_t>(logits.size());
    std::vector<float> weights(logits.size());
    exponentials_into(logits.data(), size, maximum(logits.data(), size), weights.data());
    double total = 0;
    for (const float weight : weights) total += static_cast<double>(weight);
    const auto [key, mass_above] = reach(logits, weights.data(), options.top_p * total);
    double mass = mass_above;
    for (size_t i = 0; i < logits.size(); ++i) {
      const uint32_t own = key_of(logits[i]);
      const bool keeps = own > key || (own == key && mass < options.top_p * total);
      if (own == key && keeps) mass += static_cast<double>(weights[i]);
      if (!keeps) logits[i] = kNever;
    }
  }
}

int64_t gumbel_argmax(std::span<const float> logits, RandomKey key, int64_t offset) {
  const auto size = static_cast<int64_t>(logits.size());
  Winner winner;
  for (int64_t first = 0; first < size; first += kStretch * kStretches) {
    const int64_t count = std::min(kStretch * kStretches, size - first);
    draw_among(logits.data() + first, count, key, offset + first, first, winner);
  }
  return winner.index;
}

double log_probability(std::span<const float> logits, int64_t token) {
  const auto size = static_cast<int64_t>(logits.size());
  const float shift = maximum(logits.data(), size);
  double sum = 0;
  for (int64_t first = 0; first < size; first += kSumStretch) {
    sum += static_cast<double>(sum_of_exponentials(logits.data() + first, std::min(kSumStretch, size - first), shift));
  }
  return static_cast<double>(logits[static_cast<size_t>(token)]) - static_cast<double>(shift) - std::log(sum);
}

}  // namespace dalle::generation

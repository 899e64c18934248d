// Row by row against the operators: filters against filter_logits, draws against noise and argmax of whole tensors.
#include "dalle/generation/token_draw.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <vector>

#include "support/random_tensor.h"
#include "support/tensor_matchers.h"

namespace dalle::generation {
namespace {

using testing::bitwise_equal;

std::span<const float> span_of(const Tensor& row) {
  return {row.const_data_ptr<float>(), static_cast<size_t>(row.numel())};
}

Tensor filtered(const Tensor& row, const FilterOptions& options) {
  Tensor out = row.clone();
  filter_row({out.mutable_data_ptr<float>(), static_cast<size_t>(out.numel())}, options);
  return out;
}

Tensor row(std::initializer_list<float> values) { return at::tensor(std::vector<float>(values)); }

TEST(TokenDraw, FiltersEqualThoseOfOperators) {
  for (const int64_t vocab : {1, 2, 5, 33, 1000, 8192}) {
    for (const double temperature : {1.0, 0.3, 2.5}) {
      for (const int64_t top_k : {0, 1, 2, 33, 256, 10'000}) {
        for (const double top_p : {1.0, 0.95, 0.5, 0.1, 1e-6}) {
          const FilterOptions options{temperature, top_k, top_p};
          const Tensor logits = testing::random_tensor(static_cast<uint64_t>(vocab + top_k), {vocab}) * 3;
          const Tensor expected = filter_logits(logits.unsqueeze(0), options)[0], got = filtered(logits, options);
          // Where the mass reaches top_p is a matter of rounding: one token more or less at the edge.
          const auto differing = got.isneginf().ne(expected.isneginf()).sum().item<int64_t>();
          EXPECT_LE(differing, top_p < 1 && vocab > 100 ? 1 : 0)
              << vocab << " " << temperature << " " << top_k << " " << top_p;
          if (differing == 0) {
            EXPECT_TRUE(bitwise_equal(got, expected));
          }
        }
      }
    }
  }
}

TEST(TokenDraw, TopKKeepsTiesAndTopPTheFirstOfThem) {
  const float never = -INFINITY;
  EXPECT_TRUE(at::equal(filtered(row({3, 1, 2, 2, 2}), {.top_k = 2}), row({3, never, 2, 2, 2})));
  EXPECT_TRUE(at::equal(filtered(row({-1, -1, -1}), {.top_k = 1}), row({-1, -1, -1})));
  EXPECT_TRUE(at::equal(filtered(row({0, 0, 0, 0}), {.top_p = 0.5}), row({0, 0, never, never})));
  EXPECT_TRUE(at::equal(filtered(row({0, 0, 0, 0}), {.top_p = 0.51}), row({0, 0, 0, never})));
}

TEST(TokenDraw, TopPIsTheSmallestSetThatReachesTheMass) {
  const Tensor logits = row({0.125f, 0.5f, 0.25f, 0.125f}).log();
  const auto kept = [&](double top_p) { return filtered(logits, {.top_p = top_p}).isfinite().sum().item<int64_t>(); };
  EXPECT_EQ(kept(1e-9), 1);
  EXPECT_EQ(kept(0.49), 1);
  EXPECT_EQ(kept(0.51), 2);
  EXPECT_EQ(kept(0.74), 2);
  EXPECT_EQ(kept(0.76), 3);
  EXPECT_EQ(kept(0.99), 4);
}

TEST(TokenDraw, FiltersTakeLogitsThatAreAlreadyFilteredAndLarge) {
  const float never = -INFINITY;
  EXPECT_TRUE(at::equal(filtered(row({never, 2, never, 1}), {.top_k = 1}), row({never, 2, never, never})));
  EXPECT_TRUE(at::equal(filtered(row({never, 2, never, 1}), {.top_p = 0.999}), row({never, 2, never, 1})));
  EXPECT_TRUE(at::equal(filtered(row({3e38f, -3e38f, 1}), {.top_p = 0.9}), row({3e38f, never, never})));
}

TEST(TokenDraw, DrawsEqualNoiseAndArgmax) {
  for (const int64_t vocab : {1, 7, 16, 100, 257, 8192}) {
    for (uint64_t draw = 0; draw < 20; ++draw) {
      const RandomKey key = random_key(draw, Purpose::kSampling, 5, 6);
      const double scale = draw % 3 == 0 ? 0 : draw % 3 == 1 ? 1 : 8;  // flat, and with few codes that can win
      const Tensor logits = testing::random_tensor(draw, {vocab}) * scale;
      for (const int64_t offset : {int64_t{0}, 3 * vocab, int64_t{12345}}) {
        const Tensor noise = gumbel_rows({&key, 1}, vocab, at::kCPU, offset)[0];
        EXPECT_EQ(gumbel_argmax(span_of(logits), key, offset), (logits + noise).argmax().item<int64_t>()) << vocab;
      }
    }
  }
}

TEST(TokenDraw, DrawsAmongFilteredLogitsAndMoreThanOneLotOfStretches) {
  for (const int64_t vocab : {8192, 40'000}) {
    for (uint64_t draw = 0; draw < 20; ++draw) {
      const RandomKey key = random_key(draw, Purpose::kSampling, 5, 6);
      const Tensor logits = filtered(testing::random_tensor(draw, {vocab}), {.top_k = draw % 2 == 0 ? 3 : 500});
      const Tensor noise = gumbel_rows({&key, 1}, vocab, at::kCPU, 64)[0];
      EXPECT_EQ(gumbel_argmax(span_of(logits), key, 64), (logits + noise).argmax().item<int64_t>()) << vocab;
    }
  }
}

TEST(TokenDraw, OfEqualScoresTheFirstWins) {
  // Scores this large swallow the noise.
  Tensor logits = at::zeros({1000});
  for (const int64_t place : {700, 130, 131, 999}) logits[place] = 1e30f;
  for (uint64_t draw = 0; draw < 20; ++draw) {
    EXPECT_EQ(gumbel_argmax(span_of(logits), random_key(draw, Purpose::kSampling), 0), 130);
  }
}

TEST(TokenDraw, GuidanceIsTheFormula) {
  Tensor conditional = testing::random_tensor(1, {100});
  const Tensor null = testing::random_tensor(2, {100}), expected = null + (conditional - null) * 2.5;
  guide({conditional.mutable_data_ptr<float>(), 100}, span_of(null), 2.5f);
  EXPECT_TRUE(testing::close_to(conditional, expected, 1e-6));
}

TEST(TokenDraw, OnlyTokensThatWereKeptAreDrawn) {
  Tensor logits = at::full({300}, -INFINITY);
  logits[211] = -5.0f;
  for (uint64_t draw = 0; draw < 10; ++draw) {
    EXPECT_EQ(gumbel_argmax(span_of(logits), random_key(draw, Purpose::kSampling), 0), 211);
  }
  EXPECT_EQ(gumbel_argmax(span_of(at::full({20}, NAN)), random_key(0, Purpose::kSampling), 0), 0);
}

TEST(TokenDraw, LogProbabilityIsThatOfTheSoftmax) {
  for (const int64_t vocab : {1, 7, 100, 8192}) {
    const Tensor logits = testing::random_tensor(3, {vocab}) * 5 + 40;
    const Tensor expected = at::log_softmax(logits.to(at::kDouble), 0);
    for (const int64_t token : {int64_t{0}, vocab / 2, vocab - 1}) {
      EXPECT_NEAR(log_probability(span_of(logits), token), expected[token].item<double>(), 1e-6) << vocab;
    }
  }
}

}  // namespace
}  // namespace dalle::generation

// Attention over caches in blocks against plain sums in f64, by the processor's kernels and by the plain loops.
#include "dalle/generation/cache_kernels.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "dalle/core/bf16.h"
#include "support/random_tensor.h"
#include "support/tensor_matchers.h"

namespace dalle::generation::detail {
namespace {

using testing::close_to;
using testing::random_tensor;

constexpr int64_t kBlocks = 6, kPositions = kBlocks * kBlockPositions;
constexpr float kNever = -std::numeric_limits<float>::infinity();
const std::vector<CacheSpan> kSpans{{3, 2}, {7, 1}, {16, 16}, {45, 5}, {95, 1}};  // nothing of block 4

template <class T>
T in_form(float x) {
  if constexpr (sizeof(T) == 2) {
    return float_to_bf16(x);
  } else {
    return x;
  }
}

template <class T>
Tensor rounded(const Tensor& x) {
  return (sizeof(T) == 2 ? x.to(at::kBFloat16) : x).to(at::kDouble);
}

/// One head's keys and values of all positions, and the same in blocks with a stride of their own.
template <class T>
struct Cache {
  Cache(int64_t head_size, CacheKernels kernels)
      : size(head_size),
        keys(random_tensor(1, {kPositions, size})),
        values(random_tensor(2, {kPositions, size})),
        stride(block_numbers<T>(size) + 48),
        key_blocks(static_cast<size_t>(kBlocks * stride)),
        value_blocks(key_blocks.size()) {
    for (int64_t i = 0; i < kPositions; ++i) {
      const int64_t block = i / kBlockPositions * stride;
      put_key(keys.const_data_ptr<float>() + i * size, size, i % kBlockPositions, key_blocks.data() + block, kernels);
      put_value(values.const_data_ptr<float>() + i * size, size, i % kBlockPositions, value_blocks.data() + block,
                kernels);
    }
  }

  int64_t size;
  Tensor keys, values;
  int64_t stride;
  std::vector<T> key_blocks, value_blocks;
};

std::vector<int64_t> positions_of(std::span<const CacheSpan> spans) {
  std::vector<int64_t> positions;
  for (const CacheSpan& span : spans) {
    for (int64_t i = 0; i < span.size; ++i) positions.push_back(span.begin + i);
  }
  return positions;
}

/// Places in rows of scores or weights: the own one, then the blocks'.
std::vector<int64_t> places_of(std::span<const CacheSpan> spans) {
  const auto blocks = blocks_of(spans);
  std::vector<int64_t> places;
  for (const int64_t position : positions_of(spans)) {
    for (size_t b = 0; b < blocks.size(); ++b) {
      if (blocks[b].index != position / kBlockPositions) continue;
      places.push_back(kBlockPositions * (1 + static_cast<int64_t>(b)) + position % kBlockPositions);
    }
  }
  return places;
}

template <class F>
void for_sizes_and_kernels(F f) {
  for (const int64_t size : {1, 2, 3, 16, 24, 32, 48, 80, 112, 128}) {
    for (const CacheKernels kernels : {CacheKernels::kFastest, CacheKernels::kPortable}) f(size, kernels);
  }
}

template <class T>
void expect_scores(int64_t size, CacheKernels kernels) {
  const Cache<T> cache(size, kernels);
  const Tensor q = random_tensor(3, {size});
  std::vector<T> query(static_cast<size_t>(size + 1));
  for (int64_t c = 0; c < size; ++c) query[static_cast<size_t>(c)] = in_form<T>(q.const_data_ptr<float>()[c]);
  const auto blocks = blocks_of(kSpans);
  const auto numbers = kBlockPositions * (1 + static_cast<int64_t>(blocks.size()));
  const Tensor scores = at::full({numbers + 1}, -77.0f);
  block_scores(query.data(), 0.25f, {cache.key_blocks.data(), cache.stride, size}, blocks,
               scores.mutable_data_ptr<float>(), kernels);
  EXPECT_EQ(scores[numbers].item<float>(), -77);
  EXPECT_EQ(scores[0].item<float>(), 0.25f);
  const Tensor seen = at::tensor(places_of(kSpans));
  const Tensor expected = at::mv(rounded<T>(cache.keys), rounded<T>(q)).index({at::tensor(positions_of(kSpans))});
  EXPECT_TRUE(close_to(scores.index({seen}), expected, 1e-5)) << size;
  Tensor others = scores.slice(0, 1, numbers).clone();
  others.index_put_({seen - 1}, at::tensor(kNever));
  EXPECT_TRUE(others.eq(kNever).all().item<bool>()) << size;
}

TEST(CacheKernels, ScoresAreDotProductsWithWhatIsSeen) {
  for_sizes_and_kernels([](int64_t size, CacheKernels kernels) {
    expect_scores<float>(size, kernels);
    expect_scores<uint16_t>(size, kernels);
  });
}

template <class T>
void expect_values(int64_t size, CacheKernels kernels) {
  const Cache<T> cache(size, kernels);
  const auto blocks = blocks_of(kSpans);
  const Tensor places = at::tensor(places_of(kSpans));
  Tensor weights = at::zeros({kBlockPositions * (1 + static_cast<int64_t>(blocks.size()))});
  weights.index_put_({places}, random_tensor(4, {places.size(0)}).abs());
  weights[0] = 0.7f;
  std::vector<T> own_form;
  for (int64_t i = 0; i < weights.size(0); ++i) own_form.push_back(in_form<T>(weights.const_data_ptr<float>()[i]));
  const Tensor before = random_tensor(5, {size}), own = random_tensor(6, {size});
  Tensor out = at::cat({before, at::full({1}, -77.0f)});
  add_block_values(own_form.data(), own.const_data_ptr<float>(), {cache.value_blocks.data(), cache.stride, size},
                   blocks, 1.5f, out.mutable_data_ptr<float>(), kernels);
  EXPECT_EQ(out[size].item<float>(), -77);
  const Tensor seen = rounded<T>(cache.values).index({at::tensor(positions_of(kSpans))});
  const Tensor sum = before.to(at::kDouble) + rounded<T>(weights[0]) * own.to(at::kDouble) +
                     at::mv(seen.t(), rounded<T>(weights.index({places})));
  EXPECT_TRUE(close_to(out.slice(0, 0, size), 1.5 * sum, 1e-5)) << size;
}

TEST(CacheKernels, ValuesAreAddedByTheirWeights) {
  for_sizes_and_kernels([](int64_t size, CacheKernels kernels) {
    expect_values<float>(size, kernels);
    expect_values<uint16_t>(size, kernels);
  });
}

template <class T>
void expect_weights(int64_t count, CacheKernels kernels) {
  Tensor scores = random_tensor(7, {count}) * 20;
  scores.slice(0, 5, 9).fill_(kNever);
  scores[count - 1] = 150.0f;
  scores[count - 2] = 150.0f - 86;
  const Tensor expected = (scores.to(at::kDouble) - 150).exp();
  std::vector<T> weights(static_cast<size_t>(count));
  const float sum = softmax_weights(scores.const_data_ptr<float>(), count, weights.data(), kernels);
  EXPECT_NEAR(sum, expected.sum().item<double>(), 1e-5);
  for (int64_t i = 0; i < count; ++i) {
    const float weight = sizeof(T) == 2 ? bf16_to_float(static_cast<uint16_t>(weights[static_cast<size_t>(i)]))
                                        : static_cast<float>(weights[static_cast<size_t>(i)]);
    const double wanted = expected[i].item<double>();
    EXPECT_NEAR(weight, wanted, wanted * (sizeof(T) == 2 ? 4e-3 : 3e-7) + 1e-37) << i << " of " << count;
  }
  EXPECT_EQ(weights[6], 0);
}

TEST(CacheKernels, WeightsAreExponentials) {
  for (const int64_t count : {16, 32, 48, 80, 112, 320}) {
    for (const CacheKernels kernels : {CacheKernels::kFastest, CacheKernels::kPortable}) {
      expect_weights<float>(count, kernels);
      expect_weights<uint16_t>(count, kernels);
    }
  }
}

TEST(CacheKernels, OwnScoresAreThoseOfEachHead) {
  for_sizes_and_kernels([](int64_t size, CacheKernels kernels) {
    for (const int64_t heads : {1, 3, 4, 5, 8}) {
      const Tensor q = random_tensor(8, {heads, size}), k = random_tensor(9, {heads, size});
      const Tensor scores = at::full({heads + 1}, -77.0f);
      own_scores(q.const_data_ptr<float>(), k.const_data_ptr<float>(), heads, size, scores.mutable_data_ptr<float>(),
                 kernels);
      EXPECT_EQ(scores[heads].item<float>(), -77);
      EXPECT_TRUE(close_to(scores.slice(0, 0, heads), (q.to(at::kDouble) * k.to(at::kDouble)).sum(1), 1e-5)) << size;
    }
  });
}

TEST(CacheKernels, BlocksAreThoseOfTheSpans) {
  const std::vector<SeenBlock> expected{
      {0, 0b10011000}, {1, 0xFFFF}, {2, 0b1110'0000'0000'0000}, {3, 0b11}, {5, 1u << 15}};
  EXPECT_EQ(blocks_of(kSpans), expected);
  EXPECT_TRUE(blocks_of({}).empty());
}

}  // namespace
}  // namespace dalle::generation::detail

// What of a model is compressed at the paper's sizes, in shapes alone.
#include <gtest/gtest.h>

#include "dalle/models/prior.h"
#include "dalle/training/gradient_compression.h"

namespace dalle::training {
namespace {

models::PriorConfig paper_prior(int64_t dim, int64_t num_heads, int64_t num_layers) {
  return {.text_context = 256,
          .text_vocab_size = 16384,
          .grid_size = 32,
          .image_vocab_size = 8192,
          .dim = dim,
          .num_heads = num_heads,
          .num_layers = num_layers};
}

/// Table 1 of the paper, from the matrices that training cuts a prior into.
TEST(GradientCutting, RatesOfThePapersModelsAreThoseOfTableOne) {
  struct Row {
    int64_t dim, num_heads, rank;
    double rate;
  };
  for (const Row& row : {Row{1920, 30, 512, 0.8333}, {2688, 42, 640, 0.8512}, {3968, 62, 896, 0.8589}}) {
    constexpr int64_t kLayers = 64, kShards = 8;
    const models::Prior prior(paper_prior(row.dim, row.num_heads, kLayers));
    const auto sizes = compression_sizes(whole_pieces(prior.named_parameters()), {{.rank = row.rank}, true, kShards});
    EXPECT_NEAR(sizes.matrix_rate(), row.rate, 5e-5) << row.dim;
    EXPECT_DOUBLE_EQ(sizes.matrix_rate(),
                     1 - 5.0 * static_cast<double>(row.rank) / (8.0 * static_cast<double>(row.dim)));
    EXPECT_EQ(sizes.elements, kLayers * 12 * row.dim * row.dim);
    EXPECT_EQ(sizes.num_matrices, kLayers * 6 * kShards) << "queries, keys, values and three others";
    EXPECT_EQ(sizes.all, prior.num_parameters());
    if (row.dim != 3968) continue;
    EXPECT_EQ(sizes.elements, kLayers * kShards * 23'617'536);
    EXPECT_EQ(sizes.factors, kLayers * kShards * 3'333'120);
  }
}

/// Whole matrices with the whole rank take more numbers than eight shards with an eighth of it each.
TEST(GradientCutting, ShardsSendLessThanWholeMatrices) {
  const models::Prior prior(paper_prior(1920, 30, 2));
  const auto rate = [&](int64_t num_shards) {
    return compression_sizes(whole_pieces(prior.named_parameters()), {{.rank = 512}, true, num_shards}).matrix_rate();
  };
  EXPECT_LT(rate(1), rate(2));
  EXPECT_LT(rate(2), rate(8));
}

}  // namespace
}  // namespace dalle::training

// What of a model is compressed at the paper's sizes, in shapes alone.
#include <gtest/gtest.h>

#include <map>
#include <tuple>

#include "dalle/models/prior.h"
#include "dalle/training/gradient_compression.h"
#include "dalle/training/sharded_model.h"

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

struct Row {
  int64_t dim, num_heads, rank;
  double rate;
};
/// Table 1 of the paper.
constexpr Row kTableOne[] = {{1920, 30, 512, 0.8333}, {2688, 42, 640, 0.8512}, {3968, 62, 896, 0.8589}};

/// From the matrices that training cuts a prior into.
TEST(GradientCutting, RatesOfThePapersModelsAreThoseOfTableOne) {
  for (const Row& row : kTableOne) {
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

/// The same where eight ranks share a copy: their parts are the shards.
TEST(GradientCutting, PartsOfAGroupAreThePapersShards) {
  for (const auto& [dim, num_heads, rank, rate] : kTableOne) {
    const models::Prior prior(paper_prior(dim, num_heads, 2));
    const auto parameters = prior.named_parameters();
    const CompressionConfig whole{{.rank = rank}, true, 8}, parts{{.rank = rank}, true};
    std::map<std::string, distributed::CompressedMatrix> shards;
    for (const auto& matrix : compressed_matrices(whole_pieces(parameters), whole)) shards[matrix.name] = matrix;
    CompressionSizes sizes;
    for (int64_t part = 0; part < 8; ++part) {
      const auto pieces = pieces_of_part(parameters, 8, part);
      sizes += compression_sizes(pieces, parts);
      const auto matrices = compressed_matrices(pieces, parts);
      EXPECT_EQ(matrices.size(), 2u * 6);
      for (const auto& matrix : matrices) {
        ASSERT_TRUE(shards.contains(matrix.name)) << matrix.name;
        const auto& shard = shards[matrix.name];
        EXPECT_EQ(std::tuple(matrix.rows, matrix.cols, matrix.rank), std::tuple(shard.rows, shard.cols, shard.rank));
        EXPECT_EQ(matrix.rank, rank / 8);
      }
    }
    EXPECT_NEAR(sizes.matrix_rate(), rate, 5e-5) << dim;
    const auto as_shards = compression_sizes(whole_pieces(parameters), whole);
    EXPECT_EQ(sizes.describe(rank), as_shards.describe(rank));
    EXPECT_EQ(sizes.all, as_shards.all);
  }
}

/// Ranks that do not divide a matrix have whole rows of it, and what is left over is summed exactly.
TEST(GradientCutting, PartsThatDoNotDivideAMatrixFollowMemory) {
  const models::Prior prior(paper_prior(1920, 30, 2));
  const auto parameters = prior.named_parameters();
  CompressionSizes sizes;
  for (int64_t part = 0; part < 7; ++part)
    sizes += compression_sizes(pieces_of_part(parameters, 7, part), {{.rank = 512}, true});
  EXPECT_EQ(sizes.all, prior.num_parameters());
  EXPECT_LT(sizes.elements, 2 * 12 * 1920 * 1920);
  EXPECT_GT(sizes.elements, 2 * 12 * 1920 * 1920 * 0.99);
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

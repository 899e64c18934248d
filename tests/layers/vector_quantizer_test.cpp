// The codebook of VQ-VAE: nearest codes, gradients, and its moving averages against the pair of sums they stand for.
#include "dalle/layers/vector_quantizer.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <vector>

#include "support/tensor_matchers.h"

namespace dalle::layers {
namespace {

using testing::close_to;

struct Book : Module {
  explicit Book(int64_t vocab_size = 12, int64_t dim = 5) : quantizer(*this, "quantizer", vocab_size, dim) {
    materialize(at::kCPU);
    initialize(4);
  }
  VectorQuantizer quantizer;
};

Tensor vectors(uint64_t seed, at::IntArrayRef shape = {3, 5, 4, 4}) {
  at::manual_seed(seed);
  return at::randn(shape);
}

// argmin over v of the sum of squares, number by number.
int64_t slow_nearest(const Tensor& codebook_VD, const Tensor& x_D) {
  int64_t best = 0;
  double smallest = INFINITY;
  for (int64_t v = 0; v < codebook_VD.size(0); ++v) {
    double distance = 0;
    for (int64_t d = 0; d < x_D.size(0); ++d) {
      const double difference = x_D[d].item<double>() - codebook_VD[v][d].item<double>();
      distance += difference * difference;
    }
    if (distance < smallest) smallest = distance, best = v;
  }
  return best;
}

TEST(VectorQuantizer, FindsTheNearestCode) {
  const Book book;
  const Tensor x = vectors(1), codes = book.quantizer.nearest(x);
  ASSERT_EQ(codes.sizes(), (std::vector<int64_t>{3, 4, 4}));
  for (int64_t b = 0; b < 3; ++b) {
    for (int64_t i = 0; i < 16; ++i) {
      const Tensor x_D = x[b].flatten(1).select(1, i);
      EXPECT_EQ(codes[b].flatten()[i].item<int64_t>(), slow_nearest(book.quantizer.codebook.tensor, x_D));
    }
  }
  EXPECT_GT(codes.max().item<int64_t>(), codes.min().item<int64_t>());
}

TEST(VectorQuantizer, TakesTheLowestOfEqualCodes) {
  Book book;
  book.quantizer.codebook.tensor[7].copy_(book.quantizer.codebook.tensor[2]);
  const Tensor x = book.quantizer.codebook.tensor[7].view({1, 5, 1, 1});
  EXPECT_EQ(book.quantizer.nearest(x).item<int64_t>(), 2);
}

TEST(VectorQuantizer, GivesTheDecoderTheCodebooksVectors) {
  const Book book;
  const auto out = book.quantizer.forward(vectors(2).requires_grad_());
  EXPECT_TRUE(at::equal(out.vectors_BDHW, book.quantizer.lookup(out.codes_BHW)));
  EXPECT_TRUE(at::equal(book.quantizer.lookup(out.codes_BHW)[1].select(1, 2).select(1, 3),
                        book.quantizer.codebook.tensor[out.codes_BHW[1][2][3].item<int64_t>()]));
}

TEST(VectorQuantizer, PassesTheDecodersGradientStraightThrough) {
  const Book book;
  const Tensor x = vectors(3).requires_grad_(), weight = vectors(4);
  (book.quantizer.forward(x).vectors_BDHW * weight).sum().backward();
  EXPECT_TRUE(at::equal(x.grad(), weight));
  EXPECT_FALSE(book.quantizer.codebook.tensor.requires_grad());
}

TEST(VectorQuantizer, CommitmentPullsTheEncoderTowardsItsCodes) {
  const Book book;
  const Tensor x = vectors(5).requires_grad_();
  const auto out = book.quantizer.forward(x);
  const Tensor difference = x.detach() - book.quantizer.lookup(out.codes_BHW);
  EXPECT_TRUE(close_to(out.commitment, difference.square().sum(), 1e-6));
  out.commitment.backward();
  EXPECT_TRUE(close_to(x.grad(), 2 * difference, 1e-6));
}

// sum and count as two averages of their own, codebook = sum / count: the form of the paper's appendix, in f64.
struct SlowAverages {
  explicit SlowAverages(const Tensor& codebook) : codebook(codebook.to(at::kDouble)) {
    sums = at::zeros_like(this->codebook);
    counts = at::zeros({codebook.size(0)}, at::kDouble);
  }
  void update(const Tensor& x, const Tensor& codes, double decay) {
    const Tensor rows = x.permute({0, 2, 3, 1}).reshape({-1, x.size(1)}).to(at::kDouble);
    for (int64_t v = 0; v < codebook.size(0); ++v) {
      const Tensor mine = rows.index_select(0, (codes.flatten() == v).nonzero().flatten());
      counts[v] = decay * counts[v] + (1 - decay) * static_cast<double>(mine.size(0));
      sums[v] = decay * sums[v] + (1 - decay) * mine.sum(0);
      if (counts[v].item<double>() > 0) codebook[v] = sums[v] / counts[v];
    }
  }
  Tensor codebook, sums, counts;
};

TEST(VectorQuantizer, TheCodebookIsTheQuotientOfTwoAverages) {
  Book book;
  SlowAverages slow(book.quantizer.codebook.tensor);
  const Tensor start = book.quantizer.codebook.tensor.clone();
  for (uint64_t step = 0; step < 30; ++step) {
    const Tensor x = vectors(10 + step) + 0.05 * static_cast<double>(step), codes = book.quantizer.nearest(x);
    ASSERT_TRUE(at::equal(codes, book.quantizer.forward(x).codes_BHW));
    auto evidence = book.quantizer.no_evidence();
    book.quantizer.gather(x, codes, evidence);
    book.quantizer.update(evidence, {.decay = 0.9});
    slow.update(x, codes, 0.9);
    EXPECT_TRUE(close_to(book.quantizer.codebook.tensor, slow.codebook, 1e-5)) << step;
    EXPECT_TRUE(close_to(book.quantizer.count.tensor, slow.counts, 1e-5)) << step;
  }
  EXPECT_FALSE(close_to(book.quantizer.codebook.tensor, start, 0.1)) << "it has moved";
}

TEST(VectorQuantizer, AnUnusedCodeStaysWhereItIs) {
  Book book;
  const Tensor before = book.quantizer.codebook.tensor.clone();
  const Tensor x = before[3].view({1, 5, 1, 1}) + 0.01;
  ASSERT_EQ(book.quantizer.nearest(x).item<int64_t>(), 3);
  for (int step = 0; step < 3; ++step) {
    auto evidence = book.quantizer.no_evidence();
    book.quantizer.gather(x, book.quantizer.nearest(x), evidence);
    book.quantizer.update(evidence, {.decay = 0.5});
  }
  const Tensor moved = (book.quantizer.codebook.tensor != before).any(1);
  EXPECT_EQ(moved.sum().item<int64_t>(), 1);
  EXPECT_TRUE(close_to(book.quantizer.codebook.tensor[3], x.flatten(), 1e-5)) << "the first vectors set it outright";
}

TEST(VectorQuantizer, DeadCodesAreRestarted) {
  Book book;
  const Tensor before = book.quantizer.codebook.tensor.clone();
  book.quantizer.count.tensor.copy_(at::arange(12, at::kFloat));
  auto evidence = book.quantizer.no_evidence();
  evidence.replacements_VD = vectors(6, {12, 5});
  book.quantizer.update(evidence, {.decay = 0.5, .restart_share = 0.25, .fair_count = 8});
  for (int64_t v = 0; v < 12; ++v) {
    const bool dead = static_cast<double>(v) / 2 < 2;  // the halved count against a quarter of 8
    const Tensor& expected = dead ? evidence.replacements_VD : before;
    EXPECT_TRUE(at::equal(book.quantizer.codebook.tensor[v], expected[v])) << v;
    EXPECT_EQ(book.quantizer.count.tensor[v].item<double>(), dead ? 8 : static_cast<double>(v) / 2) << v;
  }
  book.quantizer.count.tensor.zero_();
  book.quantizer.codebook.tensor.copy_(before);
  book.quantizer.update(evidence, {.decay = 0.5, .restart_share = 0, .fair_count = 8});
  EXPECT_TRUE(at::equal(book.quantizer.codebook.tensor, before)) << "a share of 0 never restarts";
}

TEST(VectorQuantizer, OtherWidthsAreRefused) {
  const Book book;
  EXPECT_THROW(book.quantizer.nearest(at::zeros({1, 4, 2, 2})), c10::ValueError);
}

}  // namespace
}  // namespace dalle::layers

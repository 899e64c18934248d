// What an update's micro-batches say about the codebook, and where dead codes restart.
#include "dalle/training/codebook_trainer.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <set>

#include "support/tensor_matchers.h"

namespace dalle::training {
namespace {

using testing::close_to;

constexpr int64_t kVocab = 32, kDim = 3, kBatch = 6, kCells = 4;

struct Book : layers::Module {
  Book() : quantizer(*this, "quantizer", kVocab, kDim) {
    materialize(at::kCPU);
    initialize(1);
  }
  layers::VectorQuantizer quantizer;
};

Tensor batch_of(uint64_t seed) {
  at::manual_seed(seed);
  return at::randn({kBatch, kDim, 2, 2});
}

/// One update from a global batch that comes in parts of `micro` pictures, pictures in the order of `positions`.
void update_once(Book& book, CodebookTrainer& trainer, const Tensor& batch, int64_t step, int64_t micro) {
  for (int64_t first = 0; first < kBatch; first += micro) {
    std::vector<int64_t> positions;
    for (int64_t i = first; i < first + micro; ++i) positions.push_back(step * kBatch + i);
    const Tensor part = batch.slice(0, first, first + micro);
    trainer.add(book.quantizer, part, book.quantizer.nearest(part), positions, step);
  }
  trainer.update(book.quantizer, *distributed::make_singleton());
}

const VectorQuantizerConfig kConfig{.codebook_decay = 0.9, .restart_share = 0.3};

TEST(CodebookTrainer, MicroBatchesChangeNothing) {
  Book whole, parts;
  CodebookTrainer in_one(kConfig, 7, kBatch, kCells), in_parts(kConfig, 7, kBatch, kCells);
  for (int64_t step = 0; step < 8; ++step) {
    update_once(whole, in_one, batch_of(static_cast<uint64_t>(step)), step, kBatch);
    update_once(parts, in_parts, batch_of(static_cast<uint64_t>(step)), step, 2);
    EXPECT_TRUE(close_to(parts.quantizer.codebook.tensor, whole.quantizer.codebook.tensor, 1e-6)) << step;
    EXPECT_TRUE(close_to(parts.quantizer.count.tensor, whole.quantizer.count.tensor, 1e-6)) << step;
  }
}

TEST(CodebookTrainer, DeadCodesRestartOnVectorsOfTheBatch) {
  Book book;
  CodebookTrainer trainer(kConfig, 7, kBatch, kCells);
  const Tensor batch = batch_of(3), used = book.quantizer.nearest(batch).flatten();
  update_once(book, trainer, batch, 0, 3);
  const Tensor rows = batch.permute({0, 2, 3, 1}).reshape({-1, kDim});
  // fair: 24 vectors on 32 codes; a tenth of even five hits is below 0.3 of it or not, code by code.
  const double bar = 0.3 * 24 / kVocab;
  const Tensor hits = at::bincount(used, {}, kVocab).to(at::kDouble) * 0.1;
  std::set<int64_t> restarted_on;
  for (int64_t v = 0; v < kVocab; ++v) {
    if (hits[v].item<double>() >= bar) continue;
    const Tensor equal = (rows == book.quantizer.codebook.tensor[v]).all(1);
    ASSERT_EQ(equal.sum().item<int64_t>(), 1) << "code " << v << " lies on a vector of the batch";
    restarted_on.insert(equal.nonzero().item<int64_t>());
  }
  EXPECT_GT(restarted_on.size(), 8U) << "not all on the same one";
}

TEST(CodebookTrainer, AnotherStepRestartsElsewhere) {
  const auto book_after = [](int64_t step) {
    Book book;
    CodebookTrainer trainer(kConfig, 7, kBatch, kCells);
    update_once(book, trainer, batch_of(3), step, kBatch);
    return book.quantizer.codebook.tensor.clone();
  };
  EXPECT_TRUE(at::equal(book_after(4), book_after(4)));
  EXPECT_FALSE(at::equal(book_after(4), book_after(5)));
}

TEST(CodebookTrainer, ASkippedUpdateLeavesNothingBehind) {
  Book book, straight;
  CodebookTrainer trainer(kConfig, 7, kBatch, kCells), other(kConfig, 7, kBatch, kCells);
  update_once(book, trainer, batch_of(2), 0, kBatch);
  update_once(straight, other, batch_of(2), 0, kBatch);
  const Tensor bad = batch_of(1) * NAN;
  trainer.add(book.quantizer, bad, book.quantizer.nearest(bad), {0, 1, 2, 3, 4, 5}, 1);
  trainer.update(book.quantizer, *distributed::make_singleton(), at::ones({}));
  EXPECT_TRUE(testing::bitwise_equal(book.quantizer.codebook.tensor, straight.quantizer.codebook.tensor));
  EXPECT_TRUE(testing::bitwise_equal(book.quantizer.count.tensor, straight.quantizer.count.tensor));
  update_once(book, trainer, batch_of(3), 2, kBatch);
  update_once(straight, other, batch_of(3), 2, kBatch);
  EXPECT_TRUE(testing::bitwise_equal(book.quantizer.codebook.tensor, straight.quantizer.codebook.tensor));
  EXPECT_TRUE(testing::bitwise_equal(book.quantizer.count.tensor, straight.quantizer.count.tensor));
}

TEST(CodebookTrainer, WithoutRestartsOnlyUsedCodesMove) {
  Book book;
  const Tensor before = book.quantizer.codebook.tensor.clone(), batch = batch_of(2);
  const Tensor used = at::bincount(book.quantizer.nearest(batch).flatten(), {}, kVocab) > 0;
  CodebookTrainer trainer({.codebook_decay = 0.9, .restart_share = 0}, 7, kBatch, kCells);
  update_once(book, trainer, batch, 0, kBatch);
  EXPECT_TRUE(at::equal((book.quantizer.codebook.tensor != before).any(1), used));
}

}  // namespace
}  // namespace dalle::training

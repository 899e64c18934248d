#include "dalle/distributed/flat_unit.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <mutex>

#include "support/tensor_matchers.h"
#include "support/thread_ranks.h"

namespace dalle::distributed {
namespace {

using testing::run_thread_ranks;
using testing::ThreadRank;

/// A matrix, a kernel in NHWC memory, a vector and a number.
std::vector<FlatShape> some_shapes() { return {{{7, 5}, {5, 1}}, {{4, 3, 2, 2}, {12, 1, 6, 3}}, {{9}, {1}}, {{}, {}}}; }

std::vector<Tensor> values_of(const std::vector<FlatShape>& shapes, int64_t seed) {
  std::vector<Tensor> values;
  for (const auto& shape : shapes) {
    values.push_back((at::arange(shape.numel(), at::kFloat) * 0.5 + static_cast<double>(seed)).view(shape.sizes));
  }
  return values;
}

TEST(FlatUnit, PartsOfAllRanksMakeTheWhole) {
  for (const int size : {1, 2, 3, 4}) {
    run_thread_ranks(size, [](ThreadRank& rank) {
      const auto shapes = some_shapes(), wanted = shapes;
      const auto values = values_of(shapes, 1);
      FlatUnit unit(shapes, at::kFloat, rank);
      std::vector<Tensor> views;
      for (size_t i = 0; i < unit.num_tensors(); ++i) {
        views.push_back(unit.view(i));
        EXPECT_EQ(views[i].strides().vec(), shapes[i].strides);
        views[i].copy_(values[i]);
      }
      const Tensor part = unit.own_part().clone();
      // The slices are this part's numbers, in the order of memory.
      for (const auto& slice : unit.slices()) {
        const Tensor flat = views[slice.tensor].as_strided({shapes[slice.tensor].numel()}, {1});
        EXPECT_TRUE(at::equal(part.slice(0, slice.offset, slice.offset + slice.end - slice.begin),
                              flat.slice(0, slice.begin, slice.end)));
      }
      for (int again = 0; again < 2; ++again) {
        unit.release();
        EXPECT_FALSE(unit.is_whole());
        EXPECT_EQ(views[0].storage().nbytes(), 0u);
        unit.start_gather(part);
        unit.gather(part);
        EXPECT_TRUE(unit.is_whole());
        for (size_t i = 0; i < views.size(); ++i) EXPECT_TRUE(at::equal(views[i], values[i])) << i;
      }
      unit.start_gather(part);  // nothing to do
      const Tensor doubled = 2 * part;
      unit.gather_again(doubled);
      EXPECT_TRUE(at::equal(views[1], 2 * values[1]));
    });
  }
}

TEST(FlatUnit, SlicesOfAllRanksCoverEachTensorOnce) {
  const auto shapes = some_shapes();
  std::vector<Tensor> seen;
  for (const auto& shape : shapes) seen.push_back(at::zeros({shape.numel()}));
  std::mutex mutex;
  run_thread_ranks(3, [&](ThreadRank& rank) {
    const FlatUnit unit(shapes, at::kFloat, rank);
    const std::lock_guard lock(mutex);
    for (const auto& slice : unit.slices()) seen[slice.tensor].slice(0, slice.begin, slice.end) += 1;
  });
  for (const Tensor& counts : seen) EXPECT_TRUE(at::equal(counts, at::ones_like(counts)));
}

TEST(FlatUnit, GradientsAreSummedIntoParts) {
  run_thread_ranks(3, [](ThreadRank& rank) {
    const auto shapes = some_shapes();
    FlatUnit unit(shapes, at::kFloat, rank);
    auto gradients = values_of(shapes, rank.rank());
    gradients[2] = rank.rank() == 1 ? gradients[2] : Tensor();  // another rank has none
    unit.start_reduce(gradients);
    EXPECT_TRUE(unit.is_reducing());
    const Tensor part = unit.finish_reduce();
    EXPECT_FALSE(unit.is_reducing());
    const auto ones = values_of(shapes, 1);
    for (const auto& slice : unit.slices()) {
      Tensor sum = slice.tensor == 2 ? ones[2] : 3 * ones[slice.tensor];
      if (slice.tensor == 1) sum = sum.permute({0, 2, 3, 1}).contiguous();
      EXPECT_TRUE(at::allclose(part.slice(0, slice.offset, slice.offset + slice.end - slice.begin),
                               sum.flatten().slice(0, slice.begin, slice.end)));
    }
  });
}

TEST(FlatUnit, WhatAutogradSavedIsThereAgain) {
  run_thread_ranks(2, [](ThreadRank& rank) {
    FlatUnit unit({{{3, 3}, {3, 1}}}, at::kFloat, rank);
    Tensor w = unit.view(0).requires_grad_();
    w.detach().copy_(at::eye(3) * 2);
    const Tensor part = unit.own_part().clone();
    const Tensor x = at::rand({2, 3}).requires_grad_();
    const Tensor y = at::mm(x, w).sum();
    unit.release();
    unit.gather(part);
    y.backward();
    EXPECT_TRUE(at::allclose(x.grad(), at::full({2, 3}, 2.0)));
    EXPECT_TRUE(w.grad().defined());
  });
}

}  // namespace
}  // namespace dalle::distributed

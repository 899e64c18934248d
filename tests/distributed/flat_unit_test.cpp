#include "dalle/distributed/flat_unit.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <mutex>

#include "support/tensor_matchers.h"
#include "support/thread_ranks.h"

namespace dalle::distributed {
namespace {

using testing::run_thread_ranks;
using testing::ThreadRank;

/// A matrix, a kernel in NHWC memory, a vector and a number; and matrices of which each of up to four ranks has an equal
/// share: three below each other, one that lies transposed, a small one.
std::vector<FlatShape> some_shapes() {
  return {{{7, 5}, {}}, {{36, 5}, {}, 3}, {{4, 3, 2, 2}, {0, 2, 3, 1}}, {{9}, {}}, {{5, 24}, {1, 0}, 1},
          {{}, {}},     {{12, 1}, {}, 1}};
}

/// The numbers in the order of their memory.
Tensor in_memory(const Tensor& values, const FlatShape& shape) {
  return (shape.order.empty() ? values : values.permute(shape.order)).flatten();
}

/// What of `values` a slice has.
Tensor numbers_of(const Tensor& values, const FlatShape& shape, const FlatSlice& slice) {
  std::vector<Tensor> stretches;
  for (const auto& [begin, end] : slice.ranges) stretches.push_back(in_memory(values, shape).slice(0, begin, end));
  return at::cat(stretches);
}

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
        EXPECT_EQ(views[i].strides().vec(), shapes[i].strides());
        views[i].copy_(values[i]);
      }
      const Tensor part = unit.own_part().clone();
      // The slices are this part's numbers, in the order of memory.
      for (const auto& slice : unit.slices()) {
        const Tensor flat = views[slice.tensor].as_strided({shapes[slice.tensor].numel()}, {1});
        EXPECT_TRUE(at::equal(flat, in_memory(values[slice.tensor], shapes[slice.tensor])));
        EXPECT_TRUE(at::equal(part.narrow(0, slice.offset, slice.size()),
                              numbers_of(values[slice.tensor], shapes[slice.tensor], slice)));
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
    for (const auto& slice : unit.slices()) {
      for (const auto& [begin, end] : slice.ranges) seen[slice.tensor].slice(0, begin, end) += 1;
    }
  });
  for (const Tensor& counts : seen) EXPECT_TRUE(at::equal(counts, at::ones_like(counts)));
}

using Ranges = std::vector<NumberRange>;

TEST(FlatLayout, SegmentsAreSharedOutEachForItself) {
  // [36, 5] in three segments of 12 rows, of which each of two ranks has 6; [5, 24] transposed, 12 of its inputs each.
  const FlatLayout layout(some_shapes(), 2);
  const auto slices = layout.slices(1);
  const auto slice_of = [&](size_t tensor) {
    return *std::find_if(slices.begin(), slices.end(), [&](const auto& slice) { return slice.tensor == tensor; });
  };
  EXPECT_EQ(slice_of(1).ranges, (Ranges{{30, 60}, {90, 120}, {150, 180}}));
  EXPECT_EQ(slice_of(4).ranges, (Ranges{{60, 120}}));
  EXPECT_EQ(slice_of(6).ranges, (Ranges{{6, 12}}));
  EXPECT_EQ(layout.segments().size(), 3u + 1 + 1 + 1);
  EXPECT_THROW(FlatLayout(some_shapes(), 5), c10::ValueError);
}

TEST(FlatUnit, GathersAndReducesInOneCollectiveAndRoundsWhatMayBe) {
  run_thread_ranks(2, [](ThreadRank& rank) {
    auto shapes = some_shapes();
    for (const size_t i : {0, 1, 4}) shapes[i].may_be_rounded = true;
    FlatUnit unit(shapes, at::kFloat, rank, at::kBFloat16);
    std::vector<Tensor> values, views;
    for (size_t i = 0; i < shapes.size(); ++i) {
      values.push_back((at::arange(shapes[i].numel(), at::kFloat) / 7 + 1).view(shapes[i].sizes));
      views.push_back(unit.view(i));
      views[i].copy_(values[i]);
    }
    const Tensor part = unit.own_part().clone();
    const auto expect_values = [&](bool rounded) {
      for (size_t i = 0; i < shapes.size(); ++i) {
        const Tensor wanted =
            rounded && shapes[i].may_be_rounded ? values[i].to(at::kBFloat16).to(at::kFloat) : values[i];
        EXPECT_TRUE(at::equal(views[i], wanted)) << i << (rounded ? " rounded" : " exact");
      }
    };
    EXPECT_FALSE(at::equal(values[1], values[1].to(at::kBFloat16).to(at::kFloat)));
    int64_t calls = rank.calls, bytes = rank.gathered_bytes;
    const auto since = [&] {
      const std::array<int64_t, 2> seen{rank.calls - calls, rank.gathered_bytes - bytes};
      calls = rank.calls;
      bytes = rank.gathered_bytes;
      return seen;
    };
    unit.release();
    unit.gather(part);
    const auto exact = since();
    EXPECT_EQ(exact[0], 1);
    expect_values(/*rounded=*/false);
    unit.gather(part, Gather::kRounded);  // exact values serve as well
    expect_values(/*rounded=*/false);
    EXPECT_EQ(since()[0], 0);
    unit.release();
    unit.start_gather(part, Gather::kRounded);
    EXPECT_FALSE(unit.is_whole());
    EXPECT_EQ(views[0].storage().nbytes(), 0u) << "on its way it takes what is sent alone";
    unit.start_gather(part, Gather::kRounded);  // it is on its way
    unit.gather(part, Gather::kRounded);
    EXPECT_TRUE(unit.is_whole());
    expect_values(/*rounded=*/true);
    const auto rounded = since();
    EXPECT_EQ(rounded[0], 1);
    const int64_t may_be = 35 + 36 * 5 + 5 * 24;  // of these a rank has half, and each number costs two bytes less
    EXPECT_NEAR(static_cast<double>(exact[1] - rounded[1]), may_be / 2.0 * 2, 64) << "paddings may differ";
    unit.gather(part);  // rounded ones do not serve
    expect_values(/*rounded=*/false);
    EXPECT_EQ(since()[0], 1);
    unit.release();
    unit.start_gather(part, Gather::kRounded);
    unit.release();  // of one that nobody waited for
    EXPECT_FALSE(unit.is_whole());
    unit.start_gather(part, Gather::kRounded);
    unit.gather(part);  // exact ones are wanted after all
    expect_values(/*rounded=*/false);
    unit.release();
    unit.gather(part, Gather::kRounded);
    unit.gather_again(2 * part);
    for (size_t i = 0; i < shapes.size(); ++i) EXPECT_TRUE(at::equal(views[i], 2 * values[i])) << i;
    since();
    unit.start_reduce(values);
    const Tensor sum = unit.finish_reduce();
    EXPECT_EQ(since()[0], 1);
    for (const auto& slice : unit.slices()) {
      EXPECT_TRUE(at::equal(sum.narrow(0, slice.offset, slice.size()),
                            2 * numbers_of(values[slice.tensor], shapes[slice.tensor], slice)));
    }
  });
}

/// Parts that are memory of the whole: what a rank changes of its part is changed there.
TEST(FlatLayout, WithoutSegmentsAPartIsMemoryOfTheWhole) {
  run_thread_ranks(2, [](ThreadRank& rank) {
    const FlatUnit one({{{4, 8}, {}}}, at::kFloat, rank), several(some_shapes(), at::kFloat, rank);
    EXPECT_TRUE(one.own_part().is_alias_of(one.view(0)));
    EXPECT_FALSE(several.own_part().is_alias_of(several.view(0)));
  });
}

TEST(FlatUnit, GradientsAreSummedIntoParts) {
  run_thread_ranks(3, [](ThreadRank& rank) {
    const auto shapes = some_shapes();
    FlatUnit unit(shapes, at::kFloat, rank);
    auto gradients = values_of(shapes, rank.rank());
    gradients[3] = rank.rank() == 1 ? gradients[3] : Tensor();  // another rank has none
    unit.start_reduce(gradients);
    EXPECT_TRUE(unit.is_reducing());
    const Tensor part = unit.finish_reduce();
    EXPECT_FALSE(unit.is_reducing());
    const auto ones = values_of(shapes, 1);
    for (const auto& slice : unit.slices()) {
      const Tensor sum = slice.tensor == 3 ? ones[3] : 3 * ones[slice.tensor];
      EXPECT_TRUE(
          at::allclose(part.narrow(0, slice.offset, slice.size()), numbers_of(sum, shapes[slice.tensor], slice)));
    }
  });
}

TEST(FlatUnit, WhatAutogradSavedIsThereAgain) {
  run_thread_ranks(2, [](ThreadRank& rank) {
    FlatUnit unit({{{3, 3}, {}}}, at::kFloat, rank);
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

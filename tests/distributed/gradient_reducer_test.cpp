// Gradients over ranks are the sums of the ranks' gradients, and their reduction begins while backward is under way.
#include "dalle/distributed/gradient_reducer.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <vector>

#include "support/rank_processes.h"
#include "support/tensor_matchers.h"

namespace dalle::distributed {
namespace {

using testing::bitwise_equal;
using testing::run_ranks;

/// A chain x -> w_0 x -> ... whose gradients come from the last matrix to the first, with a tensor used at both ends, one in
/// channels-last layout, one of another type, and one that has no gradient.
struct Chain {
  at::TensorOptions options;
  std::vector<Tensor> matrices;
  Tensor at_both_ends = at::full({4}, 0.5, options).requires_grad_();
  Tensor kernel = at::ones({2, 3, 2, 2}, options).contiguous(at::MemoryFormat::ChannelsLast).requires_grad_();
  Tensor precise = at::ones({3}, options.dtype(at::kDouble)).requires_grad_();
  Tensor unused = at::ones({5}, options).requires_grad_();
  Tensor frozen = at::ones({5}, options);

  explicit Chain(at::Device device = at::kCPU) : options(at::TensorOptions(at::kFloat).device(device)) {
    for (int i = 0; i < 6; ++i) {
      const Tensor ramp = at::arange(16, options).reshape({4, 4}).remainder(5);
      matrices.push_back((at::eye(4, options) + 0.1 * ramp).set_requires_grad(true));
    }
  }
  std::vector<Tensor> parameters() const {
    std::vector<Tensor> all{unused, at_both_ends};
    all.insert(all.end(), matrices.begin(), matrices.end());
    all.insert(all.end(), {kernel, precise, frozen});
    return all;
  }
  Tensor loss(const Tensor& input) const {
    Tensor x = input * at_both_ends;
    for (const Tensor& matrix : matrices) x = at::matmul(matrix, x).tanh();
    const Tensor picture = at::arange(2 * 3 * 4 * 4, options).reshape({2, 3, 4, 4}) * input[0];
    return (x * at_both_ends).sum() + at::conv2d(picture, kernel).mean() + (precise * input[1]).sum().to(at::kFloat);
  }
  void reset() const {
    for (Tensor parameter : parameters()) parameter.mutable_grad().reset();
  }
};

Tensor input_of(int rank, int micro_batch, int step) {
  return at::arange(4, at::kFloat) * 0.25 + rank + 0.5 * micro_batch - 0.125 * step;
}

void add_gradients(const Chain& chain, const Tensor& input) {
  torch::autograd::backward({chain.loss(input.to(chain.options.device()))}, {});
}

TEST(GradientReducerWorker, DISABLED_Sums) {
  const auto group = init(testing::rank_device(), std::chrono::seconds(60));
  const int rank = group->rank(), size = group->world_size();
  const Chain chain(testing::rank_device()), reference(testing::rank_device());
  constexpr int64_t kTwoMatrices = 2 * 16 * sizeof(float);
  GradientReducer reducer(chain.parameters(), *group, kTwoMatrices);
  for (int step = 0; step < 3; ++step) {
    chain.reset();
    reference.reset();
    for (int micro = 0; micro < 2; ++micro) {
      if (micro == 1) reducer.arm();
      add_gradients(chain, input_of(rank, micro, step));
      for (int r = 0; r < size; ++r) add_gradients(reference, input_of(r, micro, step));
    }
    reducer.finish();
    const auto actual = chain.parameters(), expected = reference.parameters();
    for (size_t i = 0; i < actual.size(); ++i) {
      ASSERT_EQ(actual[i].grad().defined(), expected[i].grad().defined()) << i;
      if (!expected[i].grad().defined()) continue;
      EXPECT_TRUE(testing::close_to(actual[i].grad(), expected[i].grad(), 1e-6)) << i;
      EXPECT_EQ(actual[i].grad().strides(), actual[i].strides()) << i;
      const Tensor all = group->all_gather(actual[i].grad().unsqueeze(0).contiguous());
      for (int r = 1; r < size; ++r) EXPECT_TRUE(bitwise_equal(all[r], all[0])) << i;
    }
    // Every bucket, once the first step has shown the order.
    EXPECT_GE(reducer.num_buckets(), 5);
    EXPECT_EQ(reducer.num_overlapped(), step == 0 ? 0 : reducer.num_buckets());
  }
}

/// A rank whose pass leaves a parameter out has zeros for it.
TEST(GradientReducerWorker, DISABLED_Missing) {
  const auto group = init(testing::rank_device(), std::chrono::seconds(60));
  const auto options = at::TensorOptions(testing::rank_device());
  Tensor everywhere = at::ones({3}, options).requires_grad_(), on_last = at::ones({2}, options).requires_grad_(),
         nowhere = at::ones({2}, options).requires_grad_();
  const bool is_last = group->rank() == group->world_size() - 1;
  GradientReducer reducer({everywhere, on_last, nowhere}, *group);
  for (int step = 0; step < 2; ++step) {
    for (Tensor* tensor : {&everywhere, &on_last, &nowhere}) tensor->mutable_grad().reset();
    reducer.arm();
    Tensor loss = (2 * everywhere).sum();
    if (is_last) loss = loss + (3 * on_last).sum();
    torch::autograd::backward({loss}, {});
    reducer.finish();
    EXPECT_TRUE(bitwise_equal(everywhere.grad(), at::full({3}, 2.0F * group->world_size())));
    EXPECT_TRUE(bitwise_equal(on_last.grad(), at::full({2}, 3.0F)));
    EXPECT_FALSE(nowhere.grad().defined());
  }
}

TEST(GradientReducer, GradientsAreTheSumsOverTwoRanks) { run_ranks(2, "GradientReducerWorker.DISABLED_Sums"); }

TEST(GradientReducer, GradientsAreTheSumsOverFourRanks) { run_ranks(4, "GradientReducerWorker.DISABLED_Sums"); }

TEST(GradientReducer, WhatARankHasNoGradientForCountsAsZero) { run_ranks(2, "GradientReducerWorker.DISABLED_Missing"); }

/// What was reduced, in order, on one rank.
class Recorder : public Communicator {
 public:
  std::vector<int64_t> sizes;
  int rank() const override { return 0; }
  int world_size() const override { return 1; }
  void all_reduce_sum(Tensor&) override {}
  void broadcast(Tensor&, int) override {}
  Tensor all_gather(const Tensor& tensor) override { return tensor; }
  void barrier() override {}
  void await(int) override {}
  Pending start_all_reduce_sum(Tensor tensor) override {
    sizes.push_back(tensor.numel());
    return {};
  }
};

TEST(GradientReducer, OnlyTheArmedPassReduces) {
  const Chain chain;
  Recorder recorder;
  GradientReducer reducer(chain.parameters(), recorder, /*bucket_bytes=*/64);
  for (int step = 0; step < 2; ++step) {
    chain.reset();
    recorder.sizes.clear();
    add_gradients(chain, input_of(0, 0, step));
    add_gradients(chain, input_of(0, 1, step));
    EXPECT_TRUE(recorder.sizes.empty()) << "no reduction while gradients are being accumulated";
    reducer.arm();
    add_gradients(chain, input_of(0, 2, step));
    EXPECT_EQ(recorder.sizes.empty(), step == 0) << "once the order is known, backward itself reduces";
    reducer.finish();
    int64_t total = 0;
    for (const int64_t size : recorder.sizes) total += size;
    EXPECT_EQ(total, 6 * 16 + 4 + 24 + 3) << "all that has a gradient, once";
  }
}

TEST(GradientReducer, HooksGoWithIt) {
  const Chain chain;
  Recorder recorder;
  {
    GradientReducer reducer(chain.parameters(), recorder);
    reducer.arm();
    add_gradients(chain, input_of(0, 0, 0));
    reducer.finish();
    reducer.arm();
  }
  recorder.sizes.clear();
  add_gradients(chain, input_of(0, 0, 0));
  EXPECT_TRUE(recorder.sizes.empty());
}

TEST(GradientReducer, APassOfAnotherKindIsRefused) {
  Tensor a = at::ones({2}).requires_grad_(), b = at::ones({2}).requires_grad_();
  Recorder recorder;
  GradientReducer reducer({a, b}, recorder);
  reducer.arm();
  torch::autograd::backward({a.sum()}, {});
  reducer.finish();
  reducer.arm();
  EXPECT_THROW(torch::autograd::backward({(a + b).sum()}, {}), c10::Error);
}

}  // namespace
}  // namespace dalle::distributed

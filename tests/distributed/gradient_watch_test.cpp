#include "dalle/distributed/gradient_watch.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <torch/csrc/autograd/autograd.h>

namespace dalle::distributed {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;

struct Watched {
  Tensor first = at::ones({2}).requires_grad_(), twice = at::ones({2}).requires_grad_(),
         unused = at::ones({2}).requires_grad_();
  std::vector<size_t> completed;
  GradientWatch watch{{first, twice, unused}, [this](size_t index) { completed.push_back(index); }};

  /// A pass of two graphs, as activation checkpointing makes them: `twice` is in both.
  void backward() {
    torch::autograd::backward({(first * 3 + twice).exp().sum()}, {});
    after_first_graph = completed;
    torch::autograd::backward({(twice * 5).sum()}, {});
  }
  std::vector<size_t> after_first_graph;
};

TEST(GradientWatch, CallsOnceAGradientIsCompleteAndNotInTheFirstPass) {
  Watched all;
  all.backward();
  EXPECT_THAT(all.completed, IsEmpty()) << "not armed";
  all.watch.arm();
  EXPECT_TRUE(all.watch.is_armed());
  all.backward();
  all.watch.disarm();
  EXPECT_THAT(all.completed, IsEmpty()) << "only watched";
  EXPECT_TRUE(all.watch.has_gradient(0) && all.watch.has_gradient(1));
  EXPECT_FALSE(all.watch.has_gradient(2));
  EXPECT_LT(all.watch.place(0), all.watch.place(1));
  EXPECT_EQ(all.watch.place(2), -1);
  all.backward();
  EXPECT_THAT(all.completed, IsEmpty()) << "not armed";
  all.watch.arm();
  all.backward();
  EXPECT_THAT(all.after_first_graph, ElementsAre(0));
  EXPECT_THAT(all.completed, ElementsAre(0, 1));
  all.watch.disarm();
}

TEST(GradientWatch, APassThatAddsMoreOftenIsRefused) {
  Watched all;
  all.watch.arm();
  all.backward();
  all.watch.disarm();
  all.watch.arm();
  EXPECT_THROW(torch::autograd::backward({all.unused.sum()}, {}), c10::Error);
}

TEST(GradientWatch, HooksGoWithIt) {
  Tensor parameter = at::ones({2}).requires_grad_();
  int calls = 0;
  {
    GradientWatch watch({parameter}, [&](size_t) { ++calls; });
    for (int pass = 0; pass < 2; ++pass) {
      watch.arm();
      torch::autograd::backward({parameter.sum()}, {});
      watch.disarm();
    }
    EXPECT_EQ(calls, 1);
  }
  torch::autograd::backward({parameter.sum()}, {});
  EXPECT_EQ(calls, 1);
}

}  // namespace
}  // namespace dalle::distributed

// Pictures of a prior in training.
#include "dalle/training/prior_preview.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "training/tiny_runs.h"

namespace dalle::training {
namespace {

TEST(PriorPreview, CodesHaveColoursOfTheirOwn) {
  const Tensor codes = at::tensor({0, 1, 2, 3, 8190, 8191, 1, 0, 5}, at::kLong).view({1, 9});
  const Tensor colours = code_colours(codes, 3);
  ASSERT_EQ(colours.sizes(), at::IntArrayRef({1, 3, 3, 3}));
  EXPECT_GE(colours.min().item<double>(), 0.1);
  EXPECT_LE(colours.max().item<double>(), 0.95);
  const Tensor flat = colours.view({3, 9}).transpose(0, 1);
  for (int64_t a = 0; a < 9; ++a) {
    for (int64_t b = 0; b < a; ++b) {
      const bool same = codes[0][a].item<int64_t>() == codes[0][b].item<int64_t>();
      EXPECT_EQ(at::allclose(flat[a], flat[b], 0, 0.02), same) << a << " " << b;
    }
  }
}

TEST(PriorPreview, TheSameNoiseAtEveryStep) {
  PriorTask task(tiny_prior(), at::kCPU);
  task.module().materialize(at::kCPU);
  task.module().initialize(1);
  const auto& prior = dynamic_cast<const models::Prior&>(task.module());
  const auto ids_of = [&](const std::string&) { return at::full({prior.config().max_caption_tokens()}, 3, at::kLong); };
  const auto draw = [&](const std::string& caption, uint64_t seed) {
    return sample_sheet(prior, task.dvae(), {{caption, {}, {}}}, ids_of, {.name = "s", .title = "t", .seed = seed})
        .picture;
  };
  EXPECT_TRUE(draw("sun", 1).equal(draw("sun", 1)));
  EXPECT_FALSE(draw("sun", 1).equal(draw("sun", 2)));
}

}  // namespace
}  // namespace dalle::training

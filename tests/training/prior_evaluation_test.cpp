// Validation losses of the prior against sums made token by token, with and without pads.
#include "dalle/training/prior_evaluation.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <map>

#include "support/small_prior.h"
#include "support/tensor_matchers.h"

namespace dalle::training {
namespace {

struct Sums {
  double pieces = 0, pads = 0, image = 0;
  int64_t num_pieces = 0, num_pads = 0, num_image = 0;
};

/// Every target by itself, in f64.
Sums reference(const models::Prior& prior, const Tensor& captions, const Tensor& images) {
  const auto out = prior.forward(captions, images);
  const Tensor text = out.text_logits_BTV.to(at::kDouble).log_softmax(2),
               image = out.image_logits_BIV.to(at::kDouble).log_softmax(2), targets = prior.text_targets(captions);
  Sums sums;
  for (int64_t b = 0; b < captions.size(0); ++b) {
    for (int64_t t = 0; t < captions.size(1); ++t) {
      const bool is_pad = captions[b][t].item<int64_t>() < 0;
      const int64_t target = targets[b][t].item<int64_t>();
      if (target < 0) continue;
      (is_pad ? sums.pads : sums.pieces) -= text[b][t][target].item<double>();
      ++(is_pad ? sums.num_pads : sums.num_pieces);
    }
    for (int64_t i = 0; i < images.size(1); ++i, ++sums.num_image) {
      sums.image -= image[b][i][images[b][i].item<int64_t>()].item<double>();
    }
  }
  return sums;
}

std::unique_ptr<models::Prior> prior_with_pads(bool on_pads) {
  auto config = testing::small_prior({layers::AttentionKind::kRow})->config();
  config.text_loss_on_pads = on_pads;
  auto prior = std::make_unique<models::Prior>(config);
  prior->materialize(at::kCPU);
  at::manual_seed(3);
  const c10::NoGradGuard no_grad;
  for (const auto& [name, p] : prior->named_parameters()) p->tensor.copy_(at::randn(p->tensor.sizes()) * 0.4);
  return prior;
}

class Evaluation : public ::testing::TestWithParam<bool> {};

TEST_P(Evaluation, IsTheMeanOverItsTokens) {
  const c10::NoGradGuard no_grad;
  const auto prior = prior_with_pads(GetParam());
  auto [captions, images] = testing::random_tokens(*prior, 5);
  captions[0].fill_(models::kPadToken);
  captions[1][2].fill_(models::kPadToken);
  const Sums sums = reference(*prior, captions, images);
  PriorLosses losses;
  losses.add(*prior, captions.slice(0, 0, 2), images.slice(0, 0, 2));
  losses.add(*prior, captions.slice(0, 2), images.slice(0, 2));
  EXPECT_EQ(losses.num_samples(), 5);
  std::map<std::string, double> metrics;
  for (const auto& [name, value] : losses.metrics("x_", 0.125, 0.875)) metrics[name] = value;
  const double image = sums.image / static_cast<double>(sums.num_image);
  const double pieces = sums.pieces / static_cast<double>(sums.num_pieces);
  const double with_pads = (sums.pieces + sums.pads) / static_cast<double>(sums.num_pieces + sums.num_pads);
  EXPECT_NEAR(metrics.at("x_image_loss"), image, 1e-5);
  EXPECT_NEAR(metrics.at("x_text_loss"), pieces, 1e-5);
  EXPECT_NEAR(metrics.at("x_loss"), with_pads / 8 + image * 7 / 8, 1e-5);
  if (GetParam()) {
    ASSERT_GT(sums.num_pads, 0);
    EXPECT_NEAR(metrics.at("x_text_loss_with_pads"), with_pads, 1e-5);
    EXPECT_NEAR(metrics.at("x_pad_loss"), sums.pads / static_cast<double>(sums.num_pads), 1e-5);
  } else {
    EXPECT_EQ(metrics.size(), 3U) << "a model without targets for pads has no loss on them";
  }
}

INSTANTIATE_TEST_SUITE_P(PadsInTheLoss, Evaluation, ::testing::Bool());

TEST(PriorLosses, ThePositionsLossIsPlacedRowByRow) {
  const c10::NoGradGuard no_grad;
  const auto prior = prior_with_pads(false);
  const auto [captions, images] = testing::random_tokens(*prior, 3);
  PriorLosses losses;
  losses.add(*prior, captions, images);
  const Tensor log_p = prior->forward(captions, images).image_logits_BIV.to(at::kDouble).log_softmax(2);
  const Tensor expected = -log_p.gather(2, images.unsqueeze(2)).squeeze(2).mean(0).view({4, 4});
  EXPECT_TRUE(testing::close_to(losses.position_loss(), expected, 1e-5));
  const Sheet sheet = position_loss_sheet(losses, "held-out", 20);
  EXPECT_EQ(sheet.name, "position-loss");
  EXPECT_EQ(sheet.picture.size(2), 3);
}

TEST(PriorLosses, NothingHasNoMean) { EXPECT_THROW(PriorLosses().position_loss(), c10::ValueError); }

}  // namespace
}  // namespace dalle::training

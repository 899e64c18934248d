// Who may depend on whom in the whole prior: each layer's measured receptive set equals its mask; perturbing one token
// changes exactly the logits that may see it, and no bit of any other.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "dalle/core/str.h"
#include "dalle/layers/attention_mask.h"
#include "support/runners.h"
#include "support/small_prior.h"
#include "support/tensor_matchers.h"

namespace dalle::models {
namespace {

using layers::AttentionKind;
using layers::ConvMaskEdge;
using testing::nonzero_rows;

struct Case {
  std::string name;
  std::vector<AttentionKind> kinds;
  ConvMaskEdge edge = ConvMaskEdge::kRaster;
};

std::vector<Case> cases() {
  using enum AttentionKind;
  return {{"full", {kFull}},
          {"row", {kRow}},
          {"column", {kColumn}},
          {"conv raster", {kConv}},
          {"conv clamp", {kConv}, ConvMaskEdge::kClamp},
          {"conv cyclic", {kConv}, ConvMaskEdge::kCyclic},
          {"two columns", {kColumn, kColumn}},
          {"paper", {kRow, kColumn, kConv}}};
}

Tensor mask_of(const Prior& prior, int64_t layer) {
  const PriorConfig& config = prior.config();
  return layers::attention_mask(config.layer_kind(layer), config.layout(), {config.conv_kernel, config.conv_mask_edge});
}

/// bool [L, L]: what the stream after all layers may depend on.
Tensor reachable(const Prior& prior) {
  Tensor reach = at::eye(prior.config().layout().length(), at::kFloat);
  for (int64_t layer = 0; layer < prior.config().num_layers; ++layer) {
    reach = at::matmul(mask_of(prior, layer).to(at::kFloat), reach).gt(0).to(at::kFloat);
  }
  return reach.to(at::kBool);
}

/// bool [L, L] by gradient: entry (i, j) where row i of `output_LD` depends on row j of the leaf `input_BLD`.
Tensor measured_dependence(const Tensor& output_LD, const Tensor& input_BLD) {
  const int64_t length = output_LD.size(0);
  Tensor measured = at::zeros({length, input_BLD.size(1)}, at::kBool);
  for (int64_t row = 0; row < length; ++row) {
    input_BLD.mutable_grad() = Tensor();
    (output_LD[row] * at::randn({output_LD.size(1)})).sum().backward({}, /*keep_graph=*/true, false, {{input_BLD}});
    measured[row].copy_(nonzero_rows(input_BLD.grad()[0]));
  }
  return measured;
}

TEST(PriorCausality, EachResblocksReceptiveSetEqualsItsMask) {
  for (const Case& c : cases()) {
    const auto prior = testing::small_prior(c.kinds, c.edge);
    const auto [caption, image] = testing::random_tokens(*prior, 1);
    const int64_t length = prior->config().layout().length();
    for (int64_t layer = 0; layer < prior->config().num_layers; ++layer) {
      testing::ProbingRunner attention(2 * layer), mlp(2 * layer + 1);
      prior->forward(caption, image, attention);
      prior->forward(caption, image, mlp);
      EXPECT_TRUE(at::equal(measured_dependence(attention.output[0], attention.input), mask_of(*prior, layer)))
          << c.name << " layer " << layer;
      EXPECT_TRUE(at::equal(measured_dependence(mlp.output[0], mlp.input), at::eye(length, at::kBool)))
          << c.name << " layer " << layer;
    }
  }
}

TEST(PriorCausality, LogitsDependOnExactlyWhatTheLayersReach) {
  for (const Case& c : cases()) {
    const auto prior = testing::small_prior(c.kinds, c.edge);
    const auto [caption, image] = testing::random_tokens(*prior, 1);
    testing::ProbingRunner probe(0);
    const PriorOutput out = prior->forward(caption, image, probe);
    const int64_t text = prior->config().text_context;
    const Tensor reach = reachable(*prior);
    EXPECT_TRUE(at::equal(measured_dependence(out.text_logits_BTV[0], probe.input), reach.slice(0, 0, text - 1)))
        << c.name;
    EXPECT_TRUE(at::equal(measured_dependence(out.image_logits_BIV[0], probe.input), reach.slice(0, text))) << c.name;
  }
}

/// bool [T - 1 + I]: logits slots, text first, that differ in any bit.
Tensor changed_slots(const PriorOutput& a, const PriorOutput& b) {
  return at::cat({a.text_logits_BTV.ne(b.text_logits_BTV).any(2), a.image_logits_BIV.ne(b.image_logits_BIV).any(2)},
                 1)[0];
}

/// Rows of the reach of one slot, for the slots that have logits (all but the last text slot).
Tensor may_change(const Tensor& reach, int64_t text, int64_t slot) {
  const Tensor column = reach.select(1, slot);
  return at::cat({column.slice(0, 0, text - 1), column.slice(0, text)});
}

TEST(PriorCausality, PerturbingATokenChangesExactlyTheLogitsThatMaySeeIt) {
  for (const Case& c : cases()) {
    const auto prior = testing::small_prior(c.kinds, c.edge);
    const PriorConfig& config = prior->config();
    const auto [caption, image] = testing::random_tokens(*prior, 1);
    const PriorOutput before = prior->forward(caption, image);
    const Tensor reach = reachable(*prior);
    for (int64_t token = 0; token < config.max_caption_tokens(); ++token) {  // held by text slot token + 1
      Tensor changed = caption.clone();
      changed[0][token] = (caption[0][token] + 3).remainder(config.text_vocab_size);
      const Tensor differs = changed_slots(prior->forward(changed, image), before);
      EXPECT_TRUE(at::equal(differs, may_change(reach, config.text_context, token + 1)))
          << c.name << " caption token " << token;
    }
    for (int64_t token = 0; token + 1 < config.image_context(); ++token) {  // held by image slot token + 1
      Tensor changed = image.clone();
      changed[0][token] = (image[0][token] + 2).remainder(config.image_vocab_size);
      const Tensor differs = changed_slots(prior->forward(caption, changed), before);
      EXPECT_TRUE(at::equal(differs, may_change(reach, config.text_context, config.text_context + token + 1)))
          << c.name << " image token " << token;
    }
    Tensor last = image.clone();
    last[0][config.image_context() - 1] = (image[0][config.image_context() - 1] + 1).remainder(config.image_vocab_size);
    EXPECT_FALSE(changed_slots(prior->forward(caption, last), before).any().item<bool>()) << c.name;
  }
}

TEST(PriorCausality, NoLogitSeesItsOwnTargetOrLater) {
  for (const Case& c : cases()) {
    const auto prior = testing::small_prior(c.kinds, c.edge);
    const int64_t text = prior->config().text_context, length = prior->config().layout().length();
    const Tensor reach = reachable(*prior);
    for (int64_t slot = 0; slot < length; ++slot) {
      // Text slot k predicts the token that slot k + 1 holds; image slot j the token that slot j + 1 holds.
      EXPECT_EQ(reach[slot].slice(0, slot + 1).sum().item<int64_t>(), 0) << c.name << " slot " << slot;
      if (slot >= text) {
        EXPECT_TRUE(reach[slot].slice(0, 0, text).all().item<bool>()) << c.name << " slot " << slot;
      }
    }
  }
}

TEST(PriorCausality, HoldsInBf16) {
  for (const Case& c : cases()) {
    const auto prior = testing::small_prior(c.kinds, c.edge, {.dtype = at::kBFloat16, .head_dtype = at::kBFloat16});
    const PriorConfig& config = prior->config();
    const auto [caption, image] = testing::random_tokens(*prior, 1);
    const PriorOutput before = prior->forward(caption, image);
    const Tensor reach = reachable(*prior);
    for (int64_t token = 0; token + 1 < config.image_context(); ++token) {
      Tensor changed = image.clone();
      changed[0][token] = (image[0][token] + 2).remainder(config.image_vocab_size);
      const Tensor differs = changed_slots(prior->forward(caption, changed), before);
      const Tensor allowed = may_change(reach, config.text_context, config.text_context + token + 1);
      EXPECT_FALSE(differs.logical_and(allowed.logical_not()).any().item<bool>()) << c.name << " image token " << token;
      EXPECT_TRUE(differs.any().item<bool>()) << c.name << " image token " << token;
    }
  }
}

}  // namespace
}  // namespace dalle::models

// The prior: size at the paper's settings, names, PyTorch's values and gradients, first losses, the stream's definition.
#include "dalle/models/prior.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "dalle/core/error.h"
#include "dalle/layers/checkpoint_runner.h"
#include "dalle/layers/cross_entropy.h"
#include "support/golden.h"
#include "support/parameter_list.h"
#include "support/runners.h"
#include "support/small_prior.h"
#include "support/tensor_matchers.h"

namespace dalle::models {
namespace {

using layers::AttentionKind;
using testing::close_to;
using Shape = std::vector<int64_t>;

/// The model of scripts/golden/prior.py.
PriorConfig golden_config(const std::string& order) {
  PriorConfig config{.text_context = 5,
                     .text_vocab_size = 11,
                     .grid_size = 4,
                     .image_vocab_size = 13,
                     .dim = 16,
                     .num_heads = 2,
                     .num_layers = 3,
                     .conv_kernel = 5};
  if (AttentionKind kind{}; order == "full") {
    config.layer_order = LayerOrder::kFull;
  } else if (parse_enum(order, kind)) {
    config.layer_order = LayerOrder::kList;
    config.layer_kinds.assign(3, kind);
  }
  return config;
}

TEST(Prior, PaperSizeOnTheMetaDevice) {
  const Prior prior{PriorConfig{}};
  EXPECT_TRUE(prior.device().is_meta());
  constexpr int64_t d = 3968;
  EXPECT_EQ(prior.transformer.num_parameters(), 64 * (12 * d * d + 13 * d));
  const int64_t embeddings = (16384 + 256 + 256 + 8192 + 32 + 32 + 2) * d, norm = 2 * d;
  const int64_t heads = (16384 + 8192) * (d + 1);
  EXPECT_EQ(prior.num_parameters(), 64 * (12 * d * d + 13 * d) + embeddings + norm + heads);
  EXPECT_EQ(prior.num_parameters(), 12'292'840'960);  // the paper's "12 billion"
}

TEST(Prior, NamesAndShapes) {
  const Prior prior{golden_config("paper")};
  EXPECT_EQ(testing::parameter_list(prior), testing::golden_parameter_list("prior_parameters.txt"));
}

TEST(Prior, MatchesPyTorchForEveryAttentionKind) {
  const testing::Golden golden("prior.safetensors");
  const Tensor captions = golden.at("captions"), images = golden.at("images");
  for (const std::string order : {"full", "row", "column", "conv", "paper"}) {
    Prior prior(golden_config(order));
    testing::load_golden(prior, golden);
    const PriorOutput out = prior.forward(captions, images);
    EXPECT_TRUE(close_to(out.text_logits_BTV, golden.at(order + ".text_logits"), 1e-5)) << order;
    EXPECT_TRUE(close_to(out.image_logits_BIV, golden.at(order + ".image_logits"), 1e-5)) << order;
    const Tensor targets = prior.text_targets(captions);
    const Tensor text = layers::cross_entropy_sum(out.text_logits_BTV, targets) / targets.ge(0).sum();
    const Tensor image = layers::cross_entropy_sum(out.image_logits_BIV, images) / images.numel();
    EXPECT_TRUE(close_to(text, golden.at(order + ".text_loss").to(at::kFloat), 1e-5)) << order;
    EXPECT_TRUE(close_to(image, golden.at(order + ".image_loss").to(at::kFloat), 1e-5)) << order;
    if (!golden.has(str("grad.", order, ".ln_final.weight"))) continue;
    (text / 8 + image * 7 / 8).backward();
    for (const auto& [name, p] : prior.named_parameters()) {
      EXPECT_TRUE(close_to(p->tensor.grad(), golden.at(str("grad.", order, ".", name)), 1e-5)) << order << " " << name;
    }
  }
}

TEST(Prior, ItsOptionsMatchPyTorch) {
  const testing::Golden golden("prior_options.safetensors");
  PriorConfig config = golden_config("paper");
  config.activation = layers::Activation::kQuickGelu;
  config.sandwich_norm = config.qk_norm = config.tied_heads = config.text_loss_on_pads = true;
  Prior prior(config);
  testing::load_golden(prior, golden);
  const Tensor captions = golden.at("captions"), images = golden.at("images");
  const PriorOutput out = prior.forward(captions, images);
  EXPECT_TRUE(close_to(out.text_logits_BTV, golden.at("text_logits"), 1e-5));
  EXPECT_TRUE(close_to(out.image_logits_BIV, golden.at("image_logits"), 1e-5));
  const Tensor targets = prior.text_targets(captions);
  const Tensor loss = layers::cross_entropy_sum(out.text_logits_BTV, targets) / targets.numel() / 8 +
                      layers::cross_entropy_sum(out.image_logits_BIV, images) / images.numel() * 7 / 8;
  EXPECT_TRUE(close_to(loss, golden.at("loss"), 1e-5));
  loss.backward();
  for (const auto& [name, p] : prior.named_parameters()) {
    if (name.ends_with("k_norm.bias")) {  // adds the same to a query's every score, which the softmax does not see
      EXPECT_LT(p->tensor.grad().abs().max().item<double>(), 1e-6) << name;
    } else {
      EXPECT_TRUE(close_to(p->tensor.grad(), golden.at("grad." + name), 1e-5)) << name;
    }
  }
}

TEST(Prior, TiedHeadsAreTheEmbeddings) {
  PriorConfig config = golden_config("paper");
  const int64_t separate = Prior(config).num_parameters();
  config.tied_heads = true;
  Prior prior(config);
  EXPECT_EQ(prior.num_parameters(), separate - (11 + 13) * 16) << "no second table";
  EXPECT_TRUE(prior.text_head_weights().weight_VD.is_same(prior.text_embedding.weight.tensor));
  EXPECT_TRUE(prior.image_head_weights().weight_VD.is_same(prior.image_embedding.weight.tensor));
  EXPECT_EQ(prior.text_head_weights().bias_V.sizes(), (Shape{11}));
  EXPECT_EQ(prior.image_head.weight, nullptr);
}

TEST(Prior, DropoutFollowsItsSamplesNotTheirBatch) {
  const auto prior = testing::small_prior({AttentionKind::kRow, AttentionKind::kColumn});
  const auto [caption, image] = testing::random_tokens(*prior, 3);
  const layers::Dropout dropout{.rate = 0.3, .seed = 7, .positions = {40, 41, 42}};
  const PriorOutput all = prior->forward(caption, image, layers::plain_runner(), dropout);
  EXPECT_FALSE(close_to(all.image_logits_BIV, prior->forward(caption, image).image_logits_BIV, 1e-2));
  const PriorOutput one =
      prior->forward(caption.slice(0, 1, 2), image.slice(0, 1, 2), layers::plain_runner(), {0.3, 7, {41}});
  EXPECT_TRUE(close_to(all.image_logits_BIV.slice(0, 1, 2), one.image_logits_BIV, 1e-5));
  layers::CheckpointRunner checkpointed;
  const auto gradients = [&](layers::BlockRunner& runner) {
    for (const auto& [name, p] : prior->named_parameters()) p->tensor.mutable_grad().reset();
    prior->forward(caption, image, runner, dropout).image_logits_BIV.square().sum().backward();
    return prior->transformer.resblocks[0]->attn.in_proj_weight.tensor.grad().clone();
  };
  EXPECT_TRUE(testing::bitwise_equal(gradients(checkpointed), gradients(layers::plain_runner())))
      << "a block that is computed again must drop the same numbers";
}

TEST(Prior, KindsFollowTheLayerOrder) {
  const auto kinds = [](const PriorConfig& config) {
    std::vector<AttentionKind> out;
    for (int64_t layer = 0; layer < config.num_layers; ++layer) out.push_back(config.layer_kind(layer));
    return out;
  };
  EXPECT_THAT(kinds(golden_config("paper")),
              ::testing::ElementsAre(AttentionKind::kRow, AttentionKind::kColumn, AttentionKind::kConv));
  EXPECT_THAT(kinds(golden_config("full")), ::testing::Each(AttentionKind::kFull));
  EXPECT_THAT(kinds(golden_config("column")), ::testing::Each(AttentionKind::kColumn));
}

TEST(Prior, FirstLossesAreLnV) {
  for (const bool on_pads : {false, true}) {
    const PriorConfig config{.text_context = 256,
                             .text_vocab_size = 16384,
                             .grid_size = 4,
                             .image_vocab_size = 8192,
                             .dim = 16,
                             .num_heads = 2,
                             .num_layers = 2,
                             .text_loss_on_pads = on_pads};
    Prior prior(config);
    prior.materialize(at::kCPU);
    prior.initialize(0);
    Tensor caption = at::full({2, 255}, kPadToken, at::kLong);
    caption.slice(1, 0, 9).copy_(at::arange(18, at::kLong).view({2, 9}) * 700);
    const Tensor image = at::arange(32, at::kLong).view({2, 16}) * 255;
    const PriorOutput out = prior.forward(caption, image);
    const Tensor targets = prior.text_targets(caption);
    const int64_t counted = targets.ge(0).sum().item<int64_t>();
    EXPECT_EQ(counted, on_pads ? 2 * 255 : 2 * 9);
    const double text =
        layers::cross_entropy_sum(out.text_logits_BTV, targets).item<double>() / static_cast<double>(counted);
    const double pictures = layers::cross_entropy_sum(out.image_logits_BIV, image).item<double>() / 32;
    EXPECT_NEAR(text, on_pads ? 9.7196 : 9.7041, 1e-4);
    EXPECT_NEAR(pictures, 9.0109, 1e-4);
    EXPECT_NEAR(text / 8 + pictures * 7 / 8, on_pads ? 9.0995 : 9.0976, 1e-4);
  }
}

TEST(Prior, PadTargetsAreTheirOwnIds) {
  PriorConfig config = golden_config("paper");
  const Tensor caption = at::tensor({3, 10, -1, -1}, at::kLong).view({1, 4});
  EXPECT_TRUE(at::equal(Prior(config).text_targets(caption), caption));
  EXPECT_EQ(config.text_targets(), 11);
  config.text_loss_on_pads = true;
  EXPECT_EQ(config.text_targets(), 16);
  const Tensor targets = Prior(config).text_targets(caption);
  EXPECT_TRUE(at::equal(targets.slice(1, 0, 2), caption.slice(1, 0, 2)));
  EXPECT_GE(targets[0][2].item<int64_t>(), 11);
  EXPECT_LT(targets[0][3].item<int64_t>(), 16);
  EXPECT_NE(targets[0][2].item<int64_t>(), targets[0][3].item<int64_t>());  // one id per position
}

TEST(Prior, HeadsRunOnTheirOwnSlotsAndTheLastImageTokenIsNeverFed) {
  const auto prior = testing::small_prior({AttentionKind::kRow, AttentionKind::kConv});
  const auto [caption, image] = testing::random_tokens(*prior, 2);
  const PriorConfig& config = prior->config();
  const PriorOutput out = prior->forward(caption, image);
  EXPECT_EQ(out.text_logits_BTV.sizes(), (Shape{2, config.text_context - 1, config.text_vocab_size}));
  EXPECT_EQ(out.image_logits_BIV.sizes(), (Shape{2, config.image_context(), config.image_vocab_size}));
  Tensor changed = image.clone();
  changed.slice(1, config.image_context() - 1)
      .copy_((image.slice(1, config.image_context() - 1) + 1).remainder(config.image_vocab_size));
  for (const Tensor& same : {changed, image.slice(1, 0, config.image_context() - 1)}) {
    const PriorOutput again = prior->forward(caption, same);
    EXPECT_TRUE(testing::bitwise_equal(again.text_logits_BTV, out.text_logits_BTV));
    EXPECT_TRUE(testing::bitwise_equal(again.image_logits_BIV, out.image_logits_BIV));
  }
}

TEST(Prior, APartOfTheImageGivesTheSameLogits) {
  const auto prior = testing::small_prior({AttentionKind::kRow, AttentionKind::kColumn, AttentionKind::kConv});
  const auto [caption, image] = testing::random_tokens(*prior, 2);
  const PriorOutput whole = prior->forward(caption, image);
  for (int64_t count = 0; count < prior->config().image_context(); ++count) {
    const PriorOutput part = prior->forward(caption, image.slice(1, 0, count));
    ASSERT_EQ(part.image_logits_BIV.size(1), count + 1);
    EXPECT_TRUE(close_to(part.image_logits_BIV, whole.image_logits_BIV.slice(1, 0, count + 1), 1e-5)) << count;
    EXPECT_TRUE(close_to(part.text_logits_BTV, whole.text_logits_BTV, 1e-5)) << count;
  }
}

TEST(Prior, ImageSlotsCanBeEmbeddedInPieces) {
  const auto prior = testing::small_prior({AttentionKind::kRow});
  const auto [caption, image] = testing::random_tokens(*prior, 2);
  const int64_t n = prior->config().image_context();
  const Tensor held = at::cat({at::full({2, 1}, 3, at::kLong), image.slice(1, 0, n - 1)}, 1);
  const Tensor whole = prior->embed_image_slots(held, 0);
  Tensor other_first = held.clone();
  other_first.select(1, 0).fill_(0);
  EXPECT_TRUE(testing::bitwise_equal(prior->embed_image_slots(other_first, 0), whole));  // slot 0 holds no token
  for (int64_t first = 1; first < n; ++first) {
    EXPECT_TRUE(testing::bitwise_equal(prior->embed_image_slots(held.slice(1, first, first + 1), first),
                                       whole.slice(1, first, first + 1)))
        << first;
  }
  EXPECT_THROW(prior->embed_image_slots(held, 1), c10::ValueError);
  EXPECT_THROW(prior->embed_text(caption.slice(1, 1)), c10::ValueError);
}

TEST(Prior, SamplesOfABatchDoNotMix) {
  const auto prior = testing::small_prior({AttentionKind::kRow, AttentionKind::kColumn});
  const auto [caption, image] = testing::random_tokens(*prior, 3);
  const PriorOutput all = prior->forward(caption, image);
  const PriorOutput one = prior->forward(caption.slice(0, 1, 2), image.slice(0, 1, 2));
  EXPECT_TRUE(close_to(all.image_logits_BIV.slice(0, 1, 2), one.image_logits_BIV, 1e-5));
  EXPECT_TRUE(close_to(all.text_logits_BTV.slice(0, 1, 2), one.text_logits_BTV, 1e-5));
}

TEST(Prior, RunnerSeesEveryResblockInOrder) {
  const auto prior = testing::small_prior({AttentionKind::kRow, AttentionKind::kColumn, AttentionKind::kConv});
  const auto [caption, image] = testing::random_tokens(*prior, 1);
  testing::RecordingRunner runner;
  const PriorOutput out = prior->forward(caption, image, runner);
  EXPECT_THAT(runner.indices, ::testing::ElementsAre(0, 1, 2, 3, 4, 5));
  for (int64_t index = 0; index < 6; ++index) {
    testing::HalvingRunner halving(index);
    EXPECT_FALSE(at::equal(prior->forward(caption, image, halving).image_logits_BIV, out.image_logits_BIV)) << index;
  }
}

TEST(Prior, Bf16IsNearF32) {
  const testing::Golden golden("prior.safetensors");
  for (const auto head : {at::kFloat, at::kBFloat16}) {
    Prior prior(golden_config("paper"), {.dtype = at::kBFloat16, .head_dtype = head});
    testing::load_golden(prior, golden);
    const PriorOutput out = prior.forward(golden.at("captions"), golden.at("images"));
    EXPECT_EQ(out.image_logits_BIV.scalar_type(), at::kFloat);
    EXPECT_EQ(out.text_logits_BTV.scalar_type(), at::kFloat);
    EXPECT_TRUE(close_to(out.image_logits_BIV, golden.at("paper.image_logits"), 3e-2));
    EXPECT_TRUE(close_to(out.text_logits_BTV, golden.at("paper.text_logits"), 3e-2));
    EXPECT_FALSE(close_to(out.image_logits_BIV, golden.at("paper.image_logits"), 1e-5));
  }
}

TEST(Prior, InitialisationIsChilds) {
  PriorConfig config = golden_config("paper");
  config.dim = 64;
  Prior prior(config);
  prior.materialize(at::kCPU);
  prior.initialize(0);
  const auto expect_std = [](const layers::Parameter& p, double expected) {
    const double n = static_cast<double>(p.tensor.numel());
    EXPECT_NEAR(p.tensor.std().item<double>(), expected, 5 * expected / std::sqrt(2 * n)) << p.name;
  };
  const auto& block = *prior.transformer.resblocks[2];
  expect_std(block.attn.in_proj_weight, 0.125 / 8);
  expect_std(block.mlp.c_fc.weight, 0.125 / 8);
  expect_std(block.attn.out_proj.weight, 0.125 / 8 / std::sqrt(6.0));
  expect_std(block.mlp.c_proj.weight, 0.125 / 16 / std::sqrt(6.0));
  expect_std(prior.image_embedding.weight, 0.02);
  expect_std(prior.text_pad_embedding.weight, 0.02);
}

TEST(Prior, ConfigsThatDoNotFitAreRefused) {
  EXPECT_THROW(Prior({.dim = 10, .num_heads = 3}), ConfigError);
  EXPECT_THROW(Prior({.conv_kernel = 4}), ConfigError);
  EXPECT_THROW(Prior({.text_vocab_size = 0}), c10::ValueError);  // 0: to be filled from the tokenizer or dVAE
  EXPECT_THROW(Prior({.grid_size = 0}), c10::ValueError);
  EXPECT_THROW(Prior({.image_vocab_size = 0}), c10::ValueError);
  EXPECT_THROW(Prior({.layer_order = LayerOrder::kList, .layer_kinds = {AttentionKind::kRow}}), ConfigError);
  EXPECT_THROW(Prior({.layer_order = LayerOrder::kPaper, .layer_kinds = {AttentionKind::kRow}}), ConfigError);
}

}  // namespace
}  // namespace dalle::models

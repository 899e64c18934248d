// The prior's training loss without whole logits and with attention by blocks, against the same op by op.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <vector>

#include "dalle/models/prior.h"
#include "dalle/optim/adamw.h"
#include "support/random_tensor.h"

namespace dalle::models {
namespace {

constexpr int64_t kSteps = 50;

PriorConfig tiny(LayerOrder order) {
  return {.text_context = 12,
          .text_vocab_size = 40,
          .grid_size = 6,
          .image_vocab_size = 24,
          .dim = 32,
          .num_heads = 2,
          .num_layers = 5,
          .layer_order = order,
          .conv_kernel = 5,
          .text_loss_on_pads = true};
}

Tensor tokens(uint64_t seed, at::IntArrayRef sizes, int64_t vocab) {
  return (testing::random_tensor(seed, sizes).abs() * 1000).to(at::kLong).remainder(vocab);
}

// Losses (text / 8 + image) of `kSteps` updates on changing batches.
std::vector<double> curve(const PriorConfig& config, const PriorCompute& compute) {
  Prior model(config, compute);
  model.materialize(at::kCPU);
  model.initialize(3);
  optim::AdamW optimizer(model.named_parameters(), {});
  std::vector<double> losses;
  for (uint64_t step = 0; step < kSteps; ++step) {
    Tensor captions = tokens(2 * step, {3, config.text_context - 1}, config.text_vocab_size);
    captions.slice(1, 7).fill_(kPadToken);
    const Tensor image = tokens(2 * step + 1, {3, config.image_context()}, config.image_vocab_size);
    const auto loss = model.loss(captions, image, {.text = 0.125 / 33, .image = 1.0 / 108});
    optimizer.zero_grad();
    (loss.text + loss.image).backward();
    optimizer.step(3e-3);
    losses.push_back(loss.text.item<double>() + loss.image.item<double>());
  }
  return losses;
}

TEST(PriorLoss, FiftyStepsAreThoseOfDenseMasksAndWholeLogits) {
  for (const auto order : {LayerOrder::kPaper, LayerOrder::kFull}) {
    const auto fast = curve(tiny(order), {}), plain = curve(tiny(order), {.by_formula = true});
    EXPECT_LT(fast.back(), fast.front());
    for (size_t step = 0; step < fast.size(); ++step) EXPECT_NEAR(fast[step] / plain[step], 1, 1e-5) << step;
  }
}

TEST(PriorLoss, FiftyStepsRepeatBitForBit) {
  for (const auto type : {at::kFloat, at::kBFloat16}) {
    EXPECT_EQ(curve(tiny(LayerOrder::kPaper), {type, type}), curve(tiny(LayerOrder::kPaper), {type, type}));
  }
}

TEST(PriorLoss, InBf16TheCurveIsCloseToF32) {
  const auto low = curve(tiny(LayerOrder::kPaper), {at::kBFloat16, at::kBFloat16});
  const auto exact = curve(tiny(LayerOrder::kPaper), {});
  for (size_t step = 0; step < low.size(); ++step) EXPECT_NEAR(low[step] / exact[step], 1, 2e-2) << step;
}

TEST(PriorLoss, IsTheCrossEntropyOfTheLogits) {
  const auto config = tiny(LayerOrder::kPaper);
  Prior model(config);
  model.materialize(at::kCPU);
  model.initialize(3);
  for (const auto& [name, parameter] : model.named_parameters()) {  // no head of zeros
    parameter->tensor.detach().add_(testing::random_tensor(5, parameter->tensor.sizes()) * 0.1);
  }
  Tensor captions = tokens(1, {2, config.text_context - 1}, config.text_vocab_size);
  captions.slice(1, 5).fill_(kPadToken);
  const Tensor image = tokens(2, {2, config.image_context()}, config.image_vocab_size);
  const auto loss = model.loss(captions, image, {.text = 0.5, .image = 2});
  const auto output = model.forward(captions, image);
  const auto sum = [](const Tensor& logits, const Tensor& targets) {
    return at::cross_entropy_loss(logits.flatten(0, 1), targets.flatten(), {}, at::Reduction::Sum).item<double>();
  };
  EXPECT_NEAR(loss.text.item<double>() / (0.5 * sum(output.text_logits_BTV, model.text_targets(captions))), 1, 1e-5);
  EXPECT_NEAR(loss.image.item<double>() / (2 * sum(output.image_logits_BIV, image)), 1, 1e-5);
}

}  // namespace
}  // namespace dalle::models

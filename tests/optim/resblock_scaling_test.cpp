// The rules of gradient scales, and the whole of per-resblock scaling on blocks in fp16.
#include "dalle/optim/resblock_scaling.h"

#include <cmath>
#include <limits>

#include "dalle/core/error.h"
#include "dalle/layers/scaled_runner.h"
#include "dalle/layers/transformer.h"
#include "optim/model.h"
#include "support/tensor_matchers.h"

namespace dalle::optim {
namespace {

using testing::bitwise_equal;
using testing::close_to;

/// Two layers, so four resblocks, each with one weight; and a head outside.
struct Blocks : layers::Module {
  Blocks() {
    materialize(at::kCPU);
    initialize(3);
    set_requires_grad(true);
  }
  std::vector<layers::Parameter*> weights{&add_parameter("resblocks.0.attn.w", {32}, layers::Init::normal(0.5)),
                                          &add_parameter("resblocks.0.mlp.w", {32}, layers::Init::normal(0.5)),
                                          &add_parameter("resblocks.1.attn.w", {32}, layers::Init::normal(0.5)),
                                          &add_parameter("resblocks.1.mlp.w", {32}, layers::Init::normal(0.5))};
  layers::Parameter& head = add_parameter("head.weight", {32}, layers::Init::normal(0.5));

  Tensor forward(Tensor x, layers::BlockRunner& runner, at::ScalarType type) {
    for (size_t i = 0; i < weights.size(); ++i) {
      x = runner.run(static_cast<int64_t>(i), x, [w = weights[i]->tensor, type](const Tensor& in) {
        return in + (in.to(type) * w.to(type)).to(in.scalar_type());
      });
    }
    return x * head.tensor;
  }
};

Tensor all_finite() { return at::ones({4}, at::kBool); }
Tensor all_but(int64_t block) {
  Tensor finite = all_finite();
  finite[block] = false;
  return finite;
}

float scale_of(const ResblockScaling& scaling, int64_t block) { return scaling.scale(block).item<float>(); }

TEST(ResblockScaling, StartsAtMTimes8192) {
  Blocks model;
  EXPECT_EQ(ResblockScaling(model.named_parameters(), 1).num_blocks(), 4);
  EXPECT_TRUE(at::equal(ResblockScaling(model.named_parameters(), 1).scales(), at::full({4}, 8192.0f)));
  EXPECT_TRUE(at::equal(ResblockScaling(model.named_parameters(), 1024).scales(), at::full({4}, 0x1p23f)));
  EXPECT_EQ(scale_of(ResblockScaling(model.named_parameters(), 3), 0), 3 * 8192.0f);
  EXPECT_THROW(ResblockScaling(model.named_parameters(), 0), c10::ValueError);
  EXPECT_THROW(ResblockScaling(TestModel().named_parameters(), 1), c10::ValueError);
}

TEST(ResblockScaling, AThousandCleanUpdatesDoubleExactly) {
  Blocks model;
  ResblockScaling scaling(model.named_parameters(), 1);
  scaling.update(all_finite());
  EXPECT_FLOAT_EQ(scale_of(scaling, 0), 8192 * std::exp2(0.001f));
  for (int i = 1; i < 1000; ++i) scaling.update(all_finite());
  EXPECT_TRUE(at::equal(scaling.scales(), at::full({4}, 16384.0f)));
}

TEST(ResblockScaling, AnOverflowDividesThatScaleAloneByTheRootOfTwo) {
  Blocks model;
  ResblockScaling scaling(model.named_parameters(), 1);
  scaling.update(all_but(2));
  EXPECT_FLOAT_EQ(scale_of(scaling, 2), 8192 / std::sqrt(2.0f));
  EXPECT_FLOAT_EQ(scale_of(scaling, 1), 8192 * std::exp2(0.001f));
}

TEST(ResblockScaling, TheSameScaleIsNotDividedAgainWithin125Updates) {
  Blocks model;
  ResblockScaling scaling(model.named_parameters(), 1);
  scaling.update(all_but(0));
  const float once = scale_of(scaling, 0);
  for (int update = 1; update < 125; ++update) {
    scaling.update(all_but(0));
    ASSERT_EQ(scale_of(scaling, 0), once) << update;
  }
  scaling.update(all_but(0));
  EXPECT_EQ(scale_of(scaling, 0), 4096);
  for (int update = 0; update < 300; ++update) scaling.update(all_finite());
  scaling.update(all_but(0));  // long after, at once
  EXPECT_FLOAT_EQ(scale_of(scaling, 0), 4096 * std::exp2(0.3f) / std::sqrt(2.0f));
}

TEST(ResblockScaling, ScalesStayWithinTheirBounds) {
  Blocks model;
  ResblockScaling scaling(model.named_parameters(), 8);
  for (int update = 0; update < 20 * 125; ++update) scaling.update(all_but(0));
  EXPECT_EQ(scale_of(scaling, 0), 8 * 128);
  for (int update = 0; update < 12'000; ++update) scaling.update(all_finite());
  EXPECT_EQ(scale_of(scaling, 1), 8 * 0x1p24f);
}

TEST(ResblockScaling, StateContinuesExactlyWithAnyNumberOfReplicas) {
  Blocks model;
  ResblockScaling straight(model.named_parameters(), 2), resumed(model.named_parameters(), 2),
      wider(model.named_parameters(), 6);
  for (int update = 0; update < 40; ++update) straight.update(update == 7 ? all_but(1) : all_finite());
  const auto state = straight.state();
  resumed.load_state(state);
  wider.load_state(state);
  for (int update = 0; update < 120; ++update) {  // over the end of block 1's waiting time
    for (ResblockScaling* scaling : {&straight, &resumed, &wider}) scaling->update(all_but(1));
    ASSERT_TRUE(bitwise_equal(resumed.scales(), straight.scales())) << update;
    ASSERT_TRUE(close_to(wider.scales(), 3 * straight.scales(), 1e-7)) << update;
  }
  auto other = state;
  other[1].tensor = other[1].tensor.slice(0, 0, 3);
  const auto message = message_of<CheckpointError>([&] { resumed.load_state(other); });
  EXPECT_NE(message.find("'resblock_scaling.since_division' of 4 resblocks"), std::string::npos) << message;
  EXPECT_TRUE(bitwise_equal(resumed.scales(), straight.scales()));
}

TEST(ResblockScaling, AnUpdateThatIsSkippedForOtherReasonsDoesNotCount) {
  Blocks model;
  ResblockScaling scaling(model.named_parameters(), 1);
  scaling.update(all_but(2), at::ones({}));
  EXPECT_TRUE(at::equal(scaling.scales(), at::full({4}, 8192.0f)));
  EXPECT_EQ(scaling.num_overflows().item<int64_t>(), 0);
  scaling.update(all_but(2), at::zeros({}));
  EXPECT_FLOAT_EQ(scale_of(scaling, 2), 8192 / std::sqrt(2.0f));
  EXPECT_EQ(scaling.num_overflows().item<int64_t>(), 1);
}

TEST(ResblockScaling, PiecesBelongToTheBlocksOfTheWholeModel) {
  Blocks model;
  const auto parameters = model.named_parameters();
  // This rank has parts of the second layer and the head alone.
  const std::vector<layers::NamedParameter> pieces{parameters[2], parameters[4]};
  ResblockScaling scaling(parameters, 1, pieces);
  EXPECT_EQ(scaling.names(),
            (std::vector<std::string>{"resblocks.0.attn", "resblocks.0.mlp", "resblocks.1.attn", "resblocks.1.mlp"}));
  for (const auto& [name, parameter] : parameters) parameter->tensor.mutable_grad() = at::full({32}, 8192.0f);
  model.weights[2]->tensor.mutable_grad()[5] = NAN;
  const Tensor finite = scaling.unscale();
  EXPECT_TRUE(at::equal(finite, all_but(2)));
  EXPECT_EQ(model.weights[2]->tensor.grad()[0].item<float>(), 1);
  EXPECT_EQ(model.weights[3]->tensor.grad()[0].item<float>(), 8192);  // no piece of it
  scaling.clear(finite);
  EXPECT_TRUE(at::equal(model.weights[2]->tensor.grad(), at::zeros({32})));
  EXPECT_EQ(model.head.tensor.grad()[0].item<float>(), 8192);
}

TEST(ResblockScaling, IndicesAreThoseThatModelsGiveTheirRunner) {
  struct TwoTowers : layers::Module {
    layers::Module visual{*this, "visual"};
    layers::TransformerOptions options{
        .dim = 8, .num_heads = 2, .num_layers = 2, .sandwich_norm = true, .qk_norm = true};
    layers::Transformer first{visual, "transformer", options}, second{*this, "transformer", options};
    layers::Parameter& head = add_parameter("head", {8, 8}, layers::Init::normal(1));
  } model;
  model.materialize(at::kCPU);
  model.initialize(1);
  model.set_requires_grad(true);
  const auto gradients = [&](layers::BlockRunner& runner) {
    const auto attend = [](int64_t) { return layers::dense_attention(Tensor()); };
    Tensor x = random_tensor(5, {2, 3, 8});
    x = model.first.forward(x, attend, runner);
    x = at::matmul(model.second.forward(x, attend, runner, /*first_layer=*/2), model.head.tensor);
    for (const auto& [name, parameter] : model.named_parameters()) parameter->tensor.mutable_grad() = Tensor();
    x.square().sum().backward();
    std::vector<Tensor> out;
    for (const auto& [name, parameter] : model.named_parameters()) out.push_back(parameter->tensor.grad().clone());
    return out;
  };
  // A parameter's gradient comes out multiplied by the scale of the block that the runner knew it in.
  layers::ScaledRunner runner(
      [](int64_t index) { return at::scalar_tensor(std::exp2(static_cast<float>(index + 1))); });
  const auto plain = gradients(layers::plain_runner()), scaled = gradients(runner);
  const auto parameters = model.named_parameters();
  const auto indices = resblock_indices(parameters);
  ASSERT_EQ(indices.size(), parameters.size());
  for (size_t i = 0; i < parameters.size(); ++i) {
    EXPECT_TRUE(close_to(scaled[i], plain[i] * std::exp2(static_cast<float>(indices[i] + 1)), 1e-4))
        << parameters[i].name << " " << indices[i];
  }
  EXPECT_EQ(indices.back(), 7);
  EXPECT_EQ(resblock_indices({{"head", &model.head}})[0], -1);
}

TEST(ResblockScaling, GradientsAreThoseOfPlainBackward) {
  Blocks model;
  ResblockScaling scaling(model.named_parameters(), 1);
  layers::ScaledRunner runner([&](int64_t block) { return scaling.scale(block); });
  const Tensor x = random_tensor(1, {4, 32});
  const auto backward = [&](layers::BlockRunner& used) {
    for (const auto& [name, parameter] : model.named_parameters()) parameter->tensor.mutable_grad() = Tensor();
    for (int64_t micro = 0; micro < 2; ++micro) {  // two micro-batches that add up
      model.forward(x.slice(0, 2 * micro, 2 * micro + 2), used, at::kFloat).square().sum().backward();
    }
  };
  backward(layers::plain_runner());
  std::vector<Tensor> expected;
  for (const auto& [name, parameter] : model.named_parameters()) expected.push_back(parameter->tensor.grad().clone());
  for (int update = 0; update < 321; ++update) scaling.update(all_finite());  // no powers of two
  backward(runner);
  EXPECT_TRUE(at::equal(scaling.unscale(), all_finite()));
  const auto parameters = model.named_parameters();
  for (size_t i = 0; i < parameters.size(); ++i) {
    EXPECT_TRUE(close_to(parameters[i].parameter->tensor.grad(), expected[i], 1e-6)) << parameters[i].name;
  }
}

TEST(ResblockScaling, AnOverflowInOneBlockLowersItsScaleAloneAndTheNextTryIsFinite) {
  Blocks model;
  ResblockScaling scaling(model.named_parameters(), 1);
  layers::ScaledRunner runner([&](int64_t block) { return scaling.scale(block); });
  // Block 1's weight times the gradient leaves fp16 at the scale 8192, and no other's.
  model.weights[1]->tensor.detach().fill_(6.0f);
  const auto finite_after_backward = [&] {
    for (const auto& [name, parameter] : model.named_parameters()) parameter->tensor.mutable_grad() = Tensor();
    Tensor x = at::full({32}, 0.25f).requires_grad_();
    model.head.tensor.detach().fill_(1.0f);
    for (const int64_t other : {0, 2, 3}) model.weights[static_cast<size_t>(other)]->tensor.detach().fill_(0.5f);
    model.forward(x, runner, at::kHalf).sum().backward();
    EXPECT_TRUE(x.grad().isfinite().all().item<bool>());
    return scaling.unscale();
  };
  // Block 1 gets 1.5^2 = 2.25 * 8192 and its input 6 times as much, 110,592, above 65,504; its own weight's gradient is
  // finite, since x is small: what overflows there is the gradient of its input alone, which is filtered.
  EXPECT_TRUE(at::equal(finite_after_backward(), all_finite()));
  const Tensor filtered = model.weights[0]->tensor.grad().clone();
  EXPECT_TRUE(close_to(filtered, at::full({32}, 2.25f * 0.25f), 1e-3));  // the identity's part of block 1
  // A gradient that leaves fp16 in the weight itself.
  model.weights[1]->tensor.detach().fill_(0.5f);
  const float large = 40;  // 2.25 * 8192 * 40 * 1.5 is infinite, but no activation is
  const auto with_large_input = [&] {
    for (const auto& [name, parameter] : model.named_parameters()) parameter->tensor.mutable_grad() = Tensor();
    Tensor y = model.weights[1]->tensor * 0;
    y = runner.run(1, y + large, [w = model.weights[1]->tensor](const Tensor& in) {
      return in + (in.to(at::kHalf) * w.to(at::kHalf)).to(at::kFloat);
    });
    y = runner.run(2, y, [w = model.weights[2]->tensor](const Tensor& in) {
      return in + (in.to(at::kHalf) * w.to(at::kHalf)).to(at::kFloat) / 64;
    });
    y.sum().backward();
    return scaling.unscale();
  };
  const Tensor finite = with_large_input();
  EXPECT_TRUE(at::equal(finite, all_but(1)));
  scaling.update(finite);
  EXPECT_FLOAT_EQ(scale_of(scaling, 1), 8192 / std::sqrt(2.0f));
  for (const int64_t block : {0, 2, 3}) EXPECT_GT(scale_of(scaling, block), 8192);
  // It goes on until the scale fits, one division in 125 updates.
  int updates = 0;
  for (; updates < 2000 && !at::equal(with_large_input(), all_finite()); ++updates) scaling.update(all_but(1));
  EXPECT_LT(scale_of(scaling, 1) * large, 65'504);
  EXPECT_GT(updates, 125);
}

}  // namespace
}  // namespace dalle::optim

// AdamW with 16-bit moments against the formula, against f32 moments, and in a training that has to converge.
#include "dalle/optim/sixteen_bit_moments.h"

#include <cmath>

#include "dalle/config/fields.h"
#include "dalle/core/error.h"
#include "dalle/core/small_floats.h"
#include "dalle/optim/adamw.h"
#include "optim/model.h"
#include "support/tensor_matchers.h"

namespace dalle::optim {
namespace {

using testing::bitwise_equal;
using testing::close_to;

constexpr AdamWConfig kF32{.beta1 = 0.9, .beta2 = 0.96, .eps = 1e-8, .weight_decay = 4.5e-2};
constexpr AdamWConfig kF16{.beta1 = 0.9, .beta2 = 0.96, .eps = 1e-8, .weight_decay = 4.5e-2, .moments = Moments::kF16};

/// A residual block's matrix and bias, a convolution in a residual block, and an unembedding outside of them.
struct BlockModel : layers::Module {
  BlockModel()
      : matrix(add_parameter("resblocks.0.mlp.c_fc.weight", {30, 41}, layers::Init::normal(1))),
        bias(add_parameter("resblocks.0.mlp.c_fc.bias", {30}, layers::Init::normal(1), false)),
        kernel(add_parameter("blocks.group_1.block_1.conv.w", {4, 3, 3, 3}, layers::Init::normal(1), true, true)),
        head(add_parameter("image_head.weight", {8, 16}, layers::Init::normal(1))) {
    materialize(at::kCPU);
    initialize(1);
  }
  layers::Parameter &matrix, &bias, &kernel, &head;
};

const Tensor& state_of(const std::vector<storage::NamedTensor>& state, const std::string& name) {
  return *storage::find_tensor(state, name);
}

/// The largest error of `actual` relative to each expected number.
double relative(const Tensor& actual, const Tensor& expected) {
  return ((actual - expected).abs() / expected.abs()).max().item<double>();
}

TEST(SixteenBitMoments, OneUpdateIsTheFormulaRoundedOnce) {
  const Tensor weight = random_tensor(1, {513}), gradient = random_tensor(2, {513}) * 1e-3;
  const Tensor start_mean = random_tensor(3, {513}) * 1e-3, start_square = random_tensor(4, {513}).square() * 1e-6;
  Tensor mean = encode_small_floats(start_mean, kFloat169, Overflow::kInfinity);
  Tensor square = encode_small_floats(start_square, kFloat0610, Overflow::kInfinity);
  const Tensor m = decode_small_floats(mean, kFloat169).to(at::kDouble) * 0.9 + gradient.to(at::kDouble) * 0.1;
  const Tensor v =
      decode_small_floats(square, kFloat0610).to(at::kDouble) * 0.96 + gradient.to(at::kDouble).square() * 0.04;
  const double correction1 = 1 - std::pow(0.9, 7), correction2 = 1 - std::pow(0.96, 7);
  const Tensor expected =
      weight.to(at::kDouble) * (1 - 1e-2 * 0.045) - 1e-2 * (m / correction1) / ((v / correction2).sqrt() + 1e-8);
  const AdamWNumbers numbers{.lr = 1e-2, .weight_decay = 0.045};
  adamw_with_sixteen_bit_moments(weight, gradient, mean, square, at::scalar_tensor(7.0f), numbers);
  EXPECT_TRUE(close_to(weight, expected, 1e-6));
  EXPECT_LT(relative(decode_small_floats(mean, kFloat169).to(at::kDouble), m), 0x1p-10 + 1e-4);
  EXPECT_LT(relative(decode_small_floats(square, kFloat0610).to(at::kDouble), v), 0x1p-11 + 1e-6);
}

TEST(SixteenBitMoments, OperatorsComputeWhatTheLoopDoes) {
  const auto run = [](auto&& update) {
    Tensor weight = random_tensor(1, {1000});
    Tensor mean = at::zeros({1000}, at::kShort), square = at::zeros({1000}, at::kShort);
    for (int step = 1; step <= 10; ++step) {
      update(weight, random_tensor(static_cast<uint64_t>(10 + step), {1000}), mean, square,
             at::full({}, step, at::kFloat), AdamWNumbers{.lr = 1e-2, .weight_decay = 0.045},
             at::full({}, step == 4 ? 1.0f : 0.0f));
    }
    return std::array{weight, decode_small_floats(mean, kFloat169), decode_small_floats(square, kFloat0610)};
  };
  const auto loop = run(adamw_with_sixteen_bit_moments), operators = run(adamw_by_operators);
  EXPECT_TRUE(close_to(operators[0], loop[0], 1e-4));
  // Where f32 sums differ by a bit, a moment may be rounded to its neighbour.
  EXPECT_TRUE(close_to(operators[1], loop[1], 0x1p-8));
  EXPECT_TRUE(close_to(operators[2], loop[2], 0x1p-9));
}

TEST(SixteenBitMoments, VariancesAreCutAtFive) {
  Tensor weight = at::zeros({2}), mean = at::zeros({2}, at::kShort), square = at::zeros({2}, at::kShort);
  const AdamWNumbers numbers{.lr = 1};
  adamw_with_sixteen_bit_moments(weight, at::tensor({100.0f, 1.0f}), mean, square, at::scalar_tensor(1.0f), numbers);
  EXPECT_EQ(decode_small_floats(square, kFloat0610)[0].item<float>(), 5);
  // m = 10 and sqrt(v) = sqrt 5, each over its bias correction; without the cut the step would be 1.
  EXPECT_NEAR(weight[0].item<float>(), -100 / std::sqrt(5 / 0.04), 1e-4);
  EXPECT_NEAR(weight[1].item<float>(), -1, 1e-5);
}

TEST(SixteenBitMoments, OnlyMatricesOfResblocksHaveThem) {
  BlockModel model;
  AdamW optimizer(model.named_parameters(), kF16);
  set_gradients(model, 1);
  optimizer.step(1e-2);
  const auto state = optimizer.state();
  for (const char* name : {"resblocks.0.mlp.c_fc.weight", "blocks.group_1.block_1.conv.w"}) {
    EXPECT_EQ(state_of(state, std::string(name) + ".exp_avg").scalar_type(), at::kShort) << name;
    EXPECT_EQ(state_of(state, std::string(name) + ".exp_avg_sq").scalar_type(), at::kShort) << name;
  }
  for (const char* name : {"resblocks.0.mlp.c_fc.bias", "image_head.weight"}) {
    EXPECT_EQ(state_of(state, std::string(name) + ".exp_avg").scalar_type(), at::kFloat) << name;
  }
}

TEST(SixteenBitMoments, FollowF32MomentsWithinTheirRounding) {
  BlockModel exact, rounded;
  AdamW first(exact.named_parameters(), kF32), second(rounded.named_parameters(), kF16);
  constexpr int kSteps = 50;
  constexpr double kRate = 1e-3;
  const Tensor start = exact.matrix.tensor.detach().clone();
  for (uint64_t step = 0; step < kSteps; ++step) {
    set_gradients(exact, step);
    set_gradients(rounded, step);
    first.step(kRate);
    second.step(kRate);
  }
  // Of independent gradients |m| is at most sqrt v about, so one update is at most about the rate. A mean carries at most
  // ten roundings of 2^-10 (0.9 forgets older ones), a variance 25 of 2^-11, of which the root takes half.
  const double bound = kSteps * kRate * (10 * 0x1p-10 + 12.5 * 0x1p-11);
  const double difference = (rounded.matrix.tensor - exact.matrix.tensor).abs().max().item<double>();
  EXPECT_LT(difference, bound);
  EXPECT_GT(difference, 0);
  EXPECT_GT((exact.matrix.tensor - start).abs().max().item<double>(), 5 * bound);
  // What stays f32 is the same bit for bit.
  EXPECT_TRUE(bitwise_equal(rounded.bias.tensor, exact.bias.tensor));
  EXPECT_TRUE(bitwise_equal(rounded.head.tensor, exact.head.tensor));
  const Tensor mean = decode_small_floats(state_of(second.state(), "resblocks.0.mlp.c_fc.weight.exp_avg"), kFloat169);
  EXPECT_TRUE(close_to(mean, state_of(first.state(), "resblocks.0.mlp.c_fc.weight.exp_avg"), 10 * 0x1p-10));
  const Tensor square =
      decode_small_floats(state_of(second.state(), "resblocks.0.mlp.c_fc.weight.exp_avg_sq"), kFloat0610);
  EXPECT_TRUE(close_to(square, state_of(first.state(), "resblocks.0.mlp.c_fc.weight.exp_avg_sq"), 25 * 0x1p-11));
}

/// Mean squared error after training a matrix on noisy linear data in mini-batches.
double trained_error(const AdamWConfig& config) {
  struct Regression : layers::Module {
    layers::Parameter& weight = add_parameter("resblocks.0.weight", {16, 24}, layers::Init::normal(1));
  } model;
  model.materialize(at::kCPU);
  model.initialize(1);
  model.set_requires_grad(true);
  AdamW optimizer(model.named_parameters(), config);
  const Tensor truth = random_tensor(100, {16, 24}), inputs = random_tensor(101, {512, 24});
  const Tensor targets = at::mm(inputs, truth.t()) + 0.1 * random_tensor(102, {512, 16});
  const auto error = [&](const Tensor& rows) {
    return (at::mm(inputs.index_select(0, rows), model.weight.tensor.t()) - targets.index_select(0, rows))
        .square()
        .mean();
  };
  for (int64_t step = 0; step < 600; ++step) {
    optimizer.zero_grad();
    error(at::arange(32) + 32 * (step % 16)).backward();
    optimizer.step(step < 400 ? 2e-2 : 2e-3);
  }
  return error(at::arange(512)).item<double>();
}

TEST(SixteenBitMoments, ARegressionConvergesAlike) {
  const AdamWConfig f32{.beta2 = 0.96, .weight_decay = 0},
      f16{.beta2 = 0.96, .weight_decay = 0, .moments = Moments::kF16};
  const double exact = trained_error(f32), rounded = trained_error(f16);
  EXPECT_LT(exact, 0.0105);  // the noise is 0.01
  EXPECT_NEAR(rounded, exact, 0.01 * exact);
  EXPECT_NE(rounded, exact);
}

TEST(SixteenBitMoments, ASkippedStepChangesNoBit) {
  BlockModel model;
  AdamW optimizer(model.named_parameters(), kF16);
  set_gradients(model, 1);
  optimizer.step(1e-2, at::zeros({}));
  std::vector<Tensor> before{model.matrix.tensor.detach().clone()};
  for (const auto& [name, tensor] : optimizer.state()) before.push_back(tensor.clone());
  set_gradients(model, 2);
  model.matrix.tensor.mutable_grad().fill_(NAN);
  optimizer.step(1e-2, at::ones({}));
  EXPECT_TRUE(bitwise_equal(model.matrix.tensor, before[0]));
  const auto after = optimizer.state();
  for (size_t i = 0; i < after.size(); ++i) EXPECT_TRUE(bitwise_equal(after[i].tensor, before[i + 1])) << after[i].name;
}

TEST(SixteenBitMoments, ContinueBitwiseFromTheirStateInItsFormat) {
  BlockModel straight, resumed;
  AdamW first(straight.named_parameters(), kF16), second(resumed.named_parameters(), kF16);
  const auto run = [](BlockModel& model, AdamW& optimizer, uint64_t from, uint64_t to) {
    for (uint64_t step = from; step < to; ++step) {
      set_gradients(model, step);
      optimizer.step(1e-2);
    }
  };
  run(straight, first, 0, 3);
  std::vector<storage::NamedTensor> state;
  for (const auto& [name, tensor] : first.state()) state.push_back({name, tensor.clone(at::MemoryFormat::Contiguous)});
  second.load_state(state);
  for (size_t i = 0; i < straight.named_parameters().size(); ++i) {
    resumed.named_parameters()[i].parameter->tensor.detach().copy_(
        straight.named_parameters()[i].parameter->tensor.detach());
  }
  run(straight, first, 3, 6);
  run(resumed, second, 3, 6);
  EXPECT_TRUE(bitwise_equal(resumed.matrix.tensor, straight.matrix.tensor));
  EXPECT_TRUE(bitwise_equal(resumed.kernel.tensor, straight.kernel.tensor));

  AdamW other(resumed.named_parameters(), kF32);
  const auto message = message_of<CheckpointError>([&] { other.load_state(state); });
  EXPECT_NE(message.find("expected moments of 32 bits, got 16"), std::string::npos) << message;
  EXPECT_EQ(other.steps(), 0);
}

TEST(SixteenBitMoments, AreAConfigsChoice) {
  const auto config = config::load_config<AdamWConfig>(config::parse_yaml("moments: f16", "x.yaml"));
  EXPECT_EQ(config.moments, Moments::kF16);
  EXPECT_EQ(AdamWConfig{}.moments, Moments::kF32);
}

}  // namespace
}  // namespace dalle::optim

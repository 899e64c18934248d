#include "dalle/optim/adamw.h"

#include "dalle/config/fields.h"
#include "optim/model.h"
#include "support/golden.h"
#include "support/tensor_matchers.h"

namespace dalle::optim {
namespace {

using testing::bitwise_equal;
using testing::close_to;

constexpr AdamWConfig kConfig{.beta1 = 0.9, .beta2 = 0.96, .eps = 1e-8, .weight_decay = 4.5e-2};

TEST(AdamW, MatchesPyTorchOverSixSteps) {
  const testing::Golden golden("adamw.safetensors");
  TestModel model;
  for (const auto& [name, parameter] : model.named_parameters()) {
    parameter->tensor.detach().copy_(golden.at("start." + name));
  }
  AdamW optimizer(model.named_parameters(), kConfig);
  const Tensor rates = golden.at("learning_rates");
  for (int64_t step = 0; step < rates.numel(); ++step) {
    const std::string at_step = dalle::str(step, ".");
    optimizer.zero_grad();
    for (const auto& [name, parameter] : model.named_parameters()) {
      const std::string key = "grad." + at_step + name;
      if (golden.has(key)) parameter->tensor.mutable_grad() = golden.at(key).clone();
    }
    optimizer.step(rates[step].item<double>());
    for (const auto& [name, parameter] : model.named_parameters()) {
      EXPECT_TRUE(close_to(parameter->tensor, golden.at("after." + at_step + name), 1e-6)) << step << " " << name;
    }
  }
  EXPECT_EQ(optimizer.steps(), rates.numel());
}

/// The formula, element by element, in f64.
struct PlainAdamW {
  AdamWConfig config;
  Tensor weight, mean = at::zeros_like(weight), square = at::zeros_like(weight);
  int64_t steps = 0;
  void step(const Tensor& gradient, double decay, double lr) {
    ++steps;
    weight = weight * (1 - lr * decay);
    mean = config.beta1 * mean + (1 - config.beta1) * gradient;
    square = config.beta2 * square + (1 - config.beta2) * gradient * gradient;
    const Tensor unbiased_mean = mean / (1 - std::pow(config.beta1, steps));
    const Tensor unbiased_square = square / (1 - std::pow(config.beta2, steps));
    weight = weight - lr * unbiased_mean / (unbiased_square.sqrt() + config.eps);
  }
};

TEST(AdamW, MatchesThePlainFormula) {
  for (const AdamWConfig& config :
       {AdamWConfig{}, kConfig, AdamWConfig{.beta1 = 0, .eps = 1e-3, .weight_decay = 0.5}}) {
    TestModel model;
    AdamW optimizer(model.named_parameters(), config);
    std::map<std::string, PlainAdamW> plain;
    for (const auto& [name, parameter] : model.named_parameters()) {
      plain.emplace(name, PlainAdamW{config, parameter->tensor.detach().to(at::kDouble).clone()});
    }
    for (uint64_t step = 0; step < 20; ++step) {
      set_gradients(model, step);
      for (const auto& [name, parameter] : model.named_parameters()) {
        plain.at(name).step(parameter->tensor.grad().to(at::kDouble), parameter->decays ? config.weight_decay : 0,
                            1e-2);
      }
      optimizer.step(1e-2);
    }
    for (const auto& [name, parameter] : model.named_parameters()) {
      EXPECT_TRUE(close_to(parameter->tensor, plain.at(name).weight, 1e-6)) << name;
    }
  }
}

TEST(AdamW, GradientLayoutDoesNotMatter) {
  TestModel rows, channels_last;
  AdamW a(rows.named_parameters(), kConfig), b(channels_last.named_parameters(), kConfig);
  for (uint64_t step = 0; step < 3; ++step) {
    set_gradients(rows, step);
    set_gradients(channels_last, step);
    Tensor& gradient = channels_last.kernel.tensor.mutable_grad();
    gradient = gradient.contiguous(at::MemoryFormat::ChannelsLast);
    ASSERT_NE(gradient.strides(), rows.kernel.tensor.grad().strides());
    a.step(1e-2);
    b.step(1e-2);
  }
  EXPECT_TRUE(bitwise_equal(rows.kernel.tensor, channels_last.kernel.tensor));
}

TEST(AdamW, FrozenParametersAreLeftAloneAndCostNoState) {
  TestModel model;
  model.set_requires_grad(false, {"kernel", "bias"});
  const Tensor kernel = model.kernel.tensor.clone(), matrix = model.matrix.tensor.detach().clone();
  AdamW optimizer(model.named_parameters(), kConfig);
  model.matrix.tensor.square().sum().backward();
  optimizer.step(1e-2);
  EXPECT_TRUE(bitwise_equal(model.kernel.tensor, kernel));
  EXPECT_FALSE(bitwise_equal(model.matrix.tensor, matrix));
  EXPECT_EQ(optimizer.state().size(), 4u);  // steps and three tensors of the matrix
}

TEST(AdamW, ASkippedStepChangesNoBit) {
  TestModel model;
  AdamW optimizer(model.named_parameters(), kConfig);
  const auto everything = [&] {
    std::vector<Tensor> tensors;
    for (const auto& [name, parameter] : model.named_parameters())
      tensors.push_back(parameter->tensor.detach().clone());
    for (const auto& [name, tensor] : optimizer.state()) tensors.push_back(tensor.clone());
    return tensors;
  };
  set_gradients(model, 1);
  optimizer.step(1e-2, at::zeros({}));
  const auto before = everything();
  set_gradients(model, 2);
  model.kernel.tensor.mutable_grad().fill_(NAN);
  optimizer.step(1e-2, at::ones({}));
  const auto after = everything();
  ASSERT_EQ(after.size(), before.size());
  for (size_t i = 0; i < before.size(); ++i) EXPECT_TRUE(bitwise_equal(after[i], before[i])) << i;
  EXPECT_EQ(optimizer.steps(), 1);
}

TEST(AdamW, AStepThatIsNotSkippedIsAnOrdinaryOne) {
  TestModel plain, flagged;
  AdamW first(plain.named_parameters(), kConfig), second(flagged.named_parameters(), kConfig);
  for (uint64_t step = 0; step < 3; ++step) {
    set_gradients(plain, step);
    set_gradients(flagged, step);
    first.step(1e-2);
    second.step(1e-2, at::zeros({}));
  }
  EXPECT_TRUE(bitwise_equal(flagged.kernel.tensor, plain.kernel.tensor));
  EXPECT_TRUE(bitwise_equal(flagged.bias.tensor, plain.bias.tensor));
  const auto expected = first.state(), actual = second.state();
  ASSERT_EQ(actual.size(), expected.size());
  for (size_t i = 0; i < expected.size(); ++i) EXPECT_TRUE(bitwise_equal(actual[i].tensor, expected[i].tensor));
}

// Each parameter as if its flag were that of all; the count of steps goes by the common flag.
TEST(AdamW, FlagsOfSingleParametersHoldForThemAlone) {
  for (const Moments moments : {Moments::kF32, Moments::kF16}) {
    TestModel some, all, none;
    AdamW with_flags(some.named_parameters(), {.moments = moments}),
        updates(all.named_parameters(), {.moments = moments});
    const Tensor off = at::zeros({}), flags = at::tensor({1.0f, 0.0f});
    for (uint64_t step = 0; step < 3; ++step) {
      for (TestModel* model : {&some, &all}) set_gradients(*model, step);
      // matrix, kernel, bias, late: the second and the last are left out
      with_flags.step(0.1, off, {flags[1], flags[0], off, flags[0]});
      updates.step(0.1, off);
    }
    EXPECT_TRUE(bitwise_equal(some.matrix.tensor, all.matrix.tensor));
    EXPECT_TRUE(bitwise_equal(some.bias.tensor, all.bias.tensor));
    EXPECT_TRUE(bitwise_equal(some.kernel.tensor, none.kernel.tensor));
    EXPECT_TRUE(bitwise_equal(some.late.tensor, none.late.tensor));
    EXPECT_FALSE(bitwise_equal(some.matrix.tensor, none.matrix.tensor));
    EXPECT_EQ(with_flags.steps(), 3);
    const auto state = with_flags.state();
    EXPECT_EQ(storage::find_tensor(state, "kernel.step")->item<int64_t>(), 0);
    EXPECT_EQ(storage::find_tensor(state, "matrix.step")->item<int64_t>(), 3);
  }
  TestModel model;
  set_gradients(model, 1);
  EXPECT_THROW(AdamW(model.named_parameters(), {}).step(0.1, {}, {at::zeros({})}), c10::ValueError);
}

TEST(AdamW, ZeroGradDropsGradients) {
  TestModel model;
  set_gradients(model, 1);
  AdamW optimizer(model.named_parameters(), kConfig);
  optimizer.zero_grad();
  for (const auto& [name, parameter] : model.named_parameters()) EXPECT_FALSE(parameter->tensor.grad().defined());
}

TEST(AdamW, ContinuesBitwiseFromItsState) {
  TestModel straight, resumed;
  AdamW first(straight.named_parameters(), kConfig);
  auto run = [](TestModel& model, AdamW& optimizer, uint64_t from, uint64_t to) {
    for (uint64_t step = from; step < to; ++step) {
      set_gradients(model, step);
      if (step < 2) model.late.tensor.mutable_grad().reset();
      optimizer.step(1e-2);
    }
  };
  run(straight, first, 0, 5);
  std::vector<storage::NamedTensor> state;  // as a file gives it: contiguous, its own memory
  for (const auto& [name, tensor] : first.state()) state.push_back({name, tensor.clone(at::MemoryFormat::Contiguous)});
  AdamW second(resumed.named_parameters(), kConfig);
  second.load_state(state);
  EXPECT_EQ(second.steps(), 5);
  for (const auto& [name, parameter] : straight.named_parameters()) {
    for (const auto& other : resumed.named_parameters()) {
      if (other.name == name) other.parameter->tensor.detach().copy_(parameter->tensor.detach());
    }
  }
  run(straight, first, 5, 9);
  run(resumed, second, 5, 9);
  for (size_t i = 0; i < straight.named_parameters().size(); ++i) {
    EXPECT_TRUE(bitwise_equal(resumed.named_parameters()[i].parameter->tensor,
                              straight.named_parameters()[i].parameter->tensor));
  }
  ASSERT_EQ(second.state().size(), first.state().size());
  EXPECT_TRUE(bitwise_equal(*storage::find_tensor(second.state(), "late.step"), at::scalar_tensor(7, at::kLong)));
}

TEST(AdamW, WrongStatesAreRefusedAndChangeNothing) {
  TestModel model;
  AdamW optimizer(model.named_parameters(), kConfig);
  set_gradients(model, 1);
  optimizer.step(1e-2);
  const auto good = optimizer.state();
  auto without = [&](const std::string& name) {
    auto state = good;
    std::erase_if(state, [&](const auto& entry) { return entry.name == name; });
    return state;
  };
  auto with = [&](const std::string& name, const Tensor& tensor) {
    auto state = without(name);
    state.push_back({name, tensor});
    return state;
  };
  for (const auto& [state, says] : std::vector<std::pair<std::vector<storage::NamedTensor>, std::string>>{
           {without("steps"), "'steps'"},
           {without("kernel.exp_avg_sq"), "'kernel.exp_avg_sq'"},
           {without("bias.step"), "'bias.step'"},
           {without("matrix.exp_avg"), "'matrix.exp_avg_sq'"},
           {with("matrix.exp_avg", at::zeros({4, 3})), "shape [3, 4], got [4, 3]"},
           {with("other.exp_avg", at::zeros({4})), "'other.exp_avg'"}}) {
    const std::string message = message_of<CheckpointError>([&] { optimizer.load_state(state); });
    EXPECT_NE(message.find(says), std::string::npos) << message;
    EXPECT_EQ(optimizer.state().size(), good.size());
    EXPECT_EQ(optimizer.steps(), 1);
  }
}

TEST(AdamW, ConfigChecksBetas) {
  EXPECT_THROW(config::load_config<AdamWConfig>(config::parse_yaml("beta2: 1", "x.yaml")), ConfigError);
  EXPECT_EQ(config::load_config<AdamWConfig>(config::parse_yaml("beta2: 0.96", "x.yaml")).beta2, 0.96);
}

}  // namespace
}  // namespace dalle::optim

// The module tree: names, meta device, materialize, seeded initialisation, requires_grad by prefix.
#include "dalle/layers/module.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "dalle/layers/leaf.h"
#include "support/tensor_matchers.h"

namespace dalle::layers {
namespace {

using testing::bitwise_equal;
using ::testing::ElementsAre;

struct Pair : Module {
  Pair(Module& parent, std::string name) : Module(parent, name) {}
  Linear first{*this, "first", {.in = 3, .out = 5}};
  Linear second{*this, "second", {.in = 5, .out = 2, .bias = false}};
};

struct Root : Module {
  Parameter& scale = add_parameter("scale", {}, Init::constant(2.5));
  Pair pair{*this, "pair"};
  LayerNorm norm{*this, "norm", 4};
};

/// The children of Pair and of Root the other way round.
struct SwappedPair : Module {
  SwappedPair(Module& parent, std::string name) : Module(parent, name) {}
  Linear second{*this, "second", {.in = 5, .out = 2, .bias = false}};
  Linear first{*this, "first", {.in = 3, .out = 5}};
};
struct SwappedRoot : Module {
  LayerNorm norm{*this, "norm", 4};
  SwappedPair pair{*this, "pair"};
  Parameter& scale = add_parameter("scale", {}, Init::constant(2.5));
};

std::map<std::string, Tensor> tensors(const Module& module) {
  std::map<std::string, Tensor> out;
  for (const auto& [name, parameter] : module.named_parameters()) out.emplace(name, parameter->tensor);
  return out;
}

std::vector<std::string> names(const Module& module) {
  std::vector<std::string> out;
  for (const auto& [name, parameter] : module.named_parameters()) out.push_back(name);
  return out;
}

TEST(Module, FullNamesFollowTheTreeInDeclarationOrder) {
  Root root;
  EXPECT_THAT(names(root), ElementsAre("scale", "pair.first.weight", "pair.first.bias", "pair.second.weight",
                                       "norm.weight", "norm.bias"));
  EXPECT_THAT(names(root.pair), ElementsAre("first.weight", "first.bias", "second.weight"));
}

TEST(Module, IsBornOnTheMetaDeviceWithShapesAndCounts) {
  Root root;
  EXPECT_TRUE(root.device().is_meta());
  for (const auto& [name, parameter] : root.named_parameters()) {
    EXPECT_TRUE(parameter->tensor.is_meta()) << name;
    EXPECT_EQ(parameter->tensor.scalar_type(), at::kFloat) << name;
  }
  EXPECT_EQ(root.num_parameters(), 1 + 3 * 5 + 5 + 5 * 2 + 4 + 4);
  EXPECT_EQ(root.pair.first.weight.tensor.sizes(), (std::vector<int64_t>{5, 3}));
}

TEST(Module, AMatrixOfATerabyteCostsNothingUntilMaterialised) {
  struct Huge : Module {
    Linear layer{*this, "layer", {.in = 1 << 20, .out = 1 << 20}};
  } huge;
  EXPECT_EQ(huge.num_parameters(), (int64_t{1} << 40) + (1 << 20));
}

TEST(Module, MaterializeAllocatesOnceAndKeepsWhatIsThere) {
  Root root;
  root.materialize(at::kCPU);
  EXPECT_TRUE(root.device().is_cpu());
  const auto before = tensors(root);
  root.initialize(1);
  const void* data = root.pair.first.weight.tensor.const_data_ptr();
  const Tensor value = root.pair.first.weight.tensor.detach().clone();
  root.materialize(at::kCPU);
  EXPECT_EQ(root.pair.first.weight.tensor.const_data_ptr(), data);
  EXPECT_TRUE(bitwise_equal(root.pair.first.weight.tensor, value));
}

TEST(Module, InitialValuesDependOnSeedAndNameOnly) {
  Root root, again, other_seed;
  SwappedRoot swapped;
  for (Module* module : {static_cast<Module*>(&root), static_cast<Module*>(&again), static_cast<Module*>(&other_seed),
                         static_cast<Module*>(&swapped)}) {
    module->materialize(at::kCPU);
  }
  root.initialize(7);
  again.initialize(7);
  swapped.initialize(7);
  other_seed.initialize(8);
  const auto expected = tensors(root), same = tensors(again), reordered = tensors(swapped);
  for (const auto& [name, value] : expected) {
    EXPECT_TRUE(bitwise_equal(same.at(name), value)) << name;
    EXPECT_TRUE(bitwise_equal(reordered.at(name), value)) << name;
  }
  EXPECT_FALSE(at::equal(tensors(other_seed).at("pair.first.weight"), expected.at("pair.first.weight")));
  // Repeating the pass restores the values.
  root.pair.first.weight.tensor.detach().zero_();
  root.initialize(7);
  EXPECT_TRUE(bitwise_equal(root.pair.first.weight.tensor, same.at("pair.first.weight")));
}

TEST(Module, EveryParameterHasItsOwnStream) {
  struct Twins : Module {
    Linear a{*this, "a", {.in = 16, .out = 16}};
    Linear b{*this, "b", {.in = 16, .out = 16}};
  } twins;
  twins.materialize(at::kCPU);
  twins.initialize(0);
  EXPECT_LT((twins.a.weight.tensor * twins.b.weight.tensor).mean().abs().item<double>(), 0.3 * 0.02 * 0.02);
  EXPECT_FALSE(at::equal(twins.a.weight.tensor, twins.b.weight.tensor));
}

TEST(Module, InitHasTheStatisticsItStates) {
  struct Wide : Module {
    Linear layer{*this, "layer", {.in = 300, .out = 400, .init = Init::normal(0.3)}};
    Parameter& ones = add_parameter("ones", {7}, Init::ones());
    Parameter& constant = add_parameter("constant", {7}, Init::constant(-1.5));
    Parameter& zeros = add_parameter("zeros", {7}, Init::zeros());
  } wide;
  wide.materialize(at::kCPU);
  wide.initialize(3);
  const Tensor w = wide.layer.weight.tensor.detach().to(at::kDouble);
  const double n = static_cast<double>(w.numel());
  EXPECT_NEAR(w.mean().item<double>(), 0, 5 * 0.3 / std::sqrt(n));
  EXPECT_NEAR(w.std().item<double>(), 0.3, 5 * 0.3 / std::sqrt(2 * n));
  EXPECT_NEAR((w / 0.3).pow(4).mean().item<double>(), 3, 5 * std::sqrt(96 / n));  // normal, not uniform
  EXPECT_TRUE(at::equal(wide.ones.tensor, at::ones({7})));
  EXPECT_TRUE(at::equal(wide.constant.tensor, at::full({7}, -1.5)));
  EXPECT_TRUE(at::equal(wide.zeros.tensor, at::zeros({7})));
}

TEST(Module, RequiresGradGoesByPrefixOfTheFullName) {
  Root root;
  root.materialize(at::kCPU);
  root.initialize(0);
  const auto training = [&] {
    std::set<std::string> out;
    for (const auto& [name, parameter] : root.named_parameters()) {
      if (parameter->tensor.requires_grad()) out.insert(name);
    }
    return out;
  };
  root.set_requires_grad(false);
  EXPECT_TRUE(training().empty());
  root.set_requires_grad(true, {"pair.first.", "norm.b"});
  EXPECT_THAT(training(), ElementsAre("norm.bias", "pair.first.bias", "pair.first.weight"));
  root.set_requires_grad(false, {"pair."});
  EXPECT_THAT(training(), ElementsAre("norm.bias"));
  root.set_requires_grad(true);
  EXPECT_EQ(training().size(), 6u);
}

TEST(Module, WeightDecayHoldsForMatricesOnly) {
  Root root;
  for (const auto& [name, parameter] : root.named_parameters()) {
    const bool matrix = name == "pair.first.weight" || name == "pair.second.weight";
    EXPECT_EQ(parameter->decays, matrix) << name;
  }
  struct Table : Module {
    Embedding table{*this, "table", 4, 3, 0.02};
    Conv2d conv{*this, "conv", {.in = 2, .out = 3, .kernel = 3}};
  } table;
  EXPECT_FALSE(table.table.weight.decays);
  EXPECT_TRUE(table.conv.w.decays);
  EXPECT_FALSE(table.conv.b.decays);
}

}  // namespace
}  // namespace dalle::layers

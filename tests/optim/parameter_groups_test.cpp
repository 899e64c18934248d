#include "dalle/optim/parameter_groups.h"

#include <gtest/gtest.h>

namespace dalle::optim {
namespace {

struct Model : layers::Module {
  layers::Parameter& matrix = add_parameter("matrix", {30, 40}, layers::Init::zeros());
  layers::Parameter& kernel = add_parameter("kernel", {2, 2, 3, 3}, layers::Init::zeros());
  layers::Parameter& gain = add_parameter("gain", {40}, layers::Init::ones());
  layers::Parameter& embedding = add_parameter("embedding", {5, 6}, layers::Init::zeros(), /*decays=*/false);
};

TEST(ParameterGroups, MatricesAndKernelsDecay) {
  Model model;
  const auto groups = parameter_groups(model.named_parameters(), 0.045);
  ASSERT_EQ(groups.size(), 2U);
  EXPECT_EQ(groups[0].weight_decay, 0.045);
  EXPECT_EQ(groups[0].num_tensors, 2);
  EXPECT_EQ(groups[0].num_parameters, 1200 + 36);
  EXPECT_EQ(groups[1].weight_decay, 0);
  EXPECT_EQ(groups[1].num_tensors, 2);
  EXPECT_EQ(groups[1].num_parameters, 40 + 30);
  EXPECT_EQ(describe(groups),
            "weight decay 0.045 on matrices and kernels (2 tensors, 1,236 numbers); 0 on gains, biases and embeddings "
            "(2 tensors, 70 numbers)");
}

TEST(ParameterGroups, FrozenParametersBelongToNone) {
  Model model;
  model.set_requires_grad(false, {"matrix", "kernel", "gain"});
  const auto groups = parameter_groups(model.named_parameters(), 0.045);
  ASSERT_EQ(groups.size(), 1U);
  EXPECT_EQ(describe(groups), "weight decay 0 on gains, biases and embeddings (1 tensor, 30 numbers)");
}

}  // namespace
}  // namespace dalle::optim

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

TEST(ParameterGroups, MatricesOfResblocksAreNeitherGainsNorEmbeddingsNorUnembeddings) {
  const auto is_matrix = [](const char* name, at::IntArrayRef shape, bool decays = true) {
    layers::Module module;
    module.add_parameter("x", shape, layers::Init::zeros(), decays);
    return is_resblock_matrix({name, module.named_parameters()[0].parameter});
  };
  EXPECT_TRUE(is_matrix("transformer.resblocks.3.attn.in_proj_weight", {12, 4}));
  EXPECT_TRUE(is_matrix("encoder.blocks.group_2.block_1.id_path.w", {8, 4, 1, 1}));
  EXPECT_TRUE(is_matrix("resblocks.0.mlp.c_fc.weight", {16, 4}));
  EXPECT_FALSE(is_matrix("transformer.resblocks.3.attn.in_proj_bias", {12}, false));
  EXPECT_FALSE(is_matrix("transformer.resblocks.3.ln_1.weight", {4}, false));
  EXPECT_FALSE(is_matrix("image_head.weight", {12, 4}));
  EXPECT_FALSE(is_matrix("text_embedding.weight", {12, 4}, false));
  EXPECT_FALSE(is_matrix("decoder.blocks.input.w", {128, 8192, 1, 1}));
}

TEST(ShardAxis, IsThatOfTheOutputsButForTheSecondMlpMatrix) {
  const auto axis = [](const char* name) { return shard_axis({name, nullptr}); };
  EXPECT_EQ(axis("transformer.resblocks.3.attn.in_proj_weight").num_stacked, 3);
  EXPECT_FALSE(axis("transformer.resblocks.3.attn.in_proj_weight").by_inputs);
  for (const char* name : {"transformer.resblocks.3.attn.out_proj.weight", "transformer.resblocks.3.mlp.c_fc.weight"}) {
    EXPECT_EQ(axis(name).num_stacked, 1) << name;
    EXPECT_FALSE(axis(name).by_inputs) << name;
  }
  EXPECT_EQ(axis("resblocks.0.mlp.c_proj.weight").num_stacked, 1);
  EXPECT_TRUE(axis("resblocks.0.mlp.c_proj.weight").by_inputs);
}

}  // namespace
}  // namespace dalle::optim

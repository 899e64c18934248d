#include "dalle/optim/gradients.h"

#include "optim/model.h"
#include "support/tensor_matchers.h"

namespace dalle::optim {
namespace {

/// All gradients as one f64 vector.
Tensor flat_gradients(const TestModel& model) {
  std::vector<Tensor> parts;
  for (const auto& [name, parameter] : model.named_parameters()) {
    if (parameter->tensor.grad().defined()) parts.push_back(parameter->tensor.grad().to(at::kDouble).reshape({-1}));
  }
  return at::cat(parts);
}

double plain_norm(const TestModel& model) { return flat_gradients(model).square().sum().sqrt().item<double>(); }

TEST(Gradients, GlobalNormIsThatOfAllElements) {
  TestModel model;
  set_gradients(model, 1);
  model.bias.tensor.mutable_grad().reset();
  const Tensor norm = global_norm(model.named_parameters());
  EXPECT_EQ(norm.scalar_type(), at::kFloat);
  EXPECT_EQ(norm.dim(), 0);
  EXPECT_NEAR(norm.item<double>(), plain_norm(model), 1e-6 * plain_norm(model));
  TestModel none;
  EXPECT_EQ(global_norm(none.named_parameters()).item<double>(), 0);
  EXPECT_EQ(global_norm(gradient_norms({})).item<double>(), 0);
}

TEST(Gradients, ClippingScalesOnlyLongGradients) {
  TestModel model;
  set_gradients(model, 1);
  const Tensor before = flat_gradients(model);
  const double norm = plain_norm(model);
  EXPECT_NEAR(clip_by_global_norm(model.named_parameters(), 4 * norm).item<double>(), norm, 1e-5);
  EXPECT_TRUE(testing::bitwise_equal(flat_gradients(model), before));
  EXPECT_NEAR(clip_by_global_norm(model.named_parameters(), 4).item<double>(), norm, 1e-5);
  EXPECT_NEAR(plain_norm(model), 4, 1e-5);
  EXPECT_TRUE(testing::close_to(flat_gradients(model), before * (4 / (norm + 1e-6)), 1e-6));
  TestModel none;
  EXPECT_EQ(clip_by_global_norm(none.named_parameters(), 4).item<double>(), 0);
}

TEST(Gradients, AllFiniteFindsASingleBadElement) {
  TestModel model;
  EXPECT_TRUE(all_finite(model.named_parameters()).item<bool>());
  set_gradients(model, 1);
  model.matrix.tensor.mutable_grad().fill_(3e38f);  // its norm overflows f32, its elements do not
  EXPECT_TRUE(all_finite(model.named_parameters()).item<bool>());
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    for (const int64_t position : {0, 17, 53}) {
      set_gradients(model, 1);
      model.kernel.tensor.mutable_grad().view(-1)[position] = bad;
      EXPECT_FALSE(all_finite(model.named_parameters()).item<bool>()) << bad << " at " << position;
    }
  }
}

TEST(Gradients, BlocksOfPublishedNames) {
  const std::pair<const char*, const char*> cases[] = {
      {"encoder.blocks.group_1.block_1.res_path.conv_1.w", "encoder.blocks.group_1.block_1"},
      {"decoder.blocks.group_4.block_2.id_path.b", "decoder.blocks.group_4.block_2"},
      {"blocks.group_4.block_2.id_path.b", "blocks.group_4.block_2"},
      {"encoder.blocks.input.w", "encoder.blocks.input"},
      {"decoder.blocks.output.conv.w", "decoder.blocks.output"},
      {"transformer.resblocks.3.attn.in_proj_weight", "transformer.resblocks.3"},
      {"visual.transformer.resblocks.11.mlp.c_fc.bias", "visual.transformer.resblocks.11"},
      {"visual.conv1.weight", "visual"},
      {"text_embedding.weight", "text_embedding"},
      {"logit_scale", "logit_scale"}};
  for (const auto& [name, block] : cases) EXPECT_EQ(block_of(name), block);
}

struct BlockModel : layers::Module {
  BlockModel() {
    for (const char* name : {"resblocks.0.a", "resblocks.0.b", "resblocks.1.a", "head"}) {
      add_parameter(name, {2}, layers::Init::ones());
    }
    materialize(at::kCPU);
    initialize(1);
  }
};

TEST(Gradients, BlockNormsAreGroupedAndAddUp) {
  BlockModel model;
  const auto parameters = model.named_parameters();
  EXPECT_TRUE(block_norms(parameters).empty());
  const std::vector<double> values = {3, 4, 5, 6};
  for (size_t i = 0; i < 4; ++i) {
    if (i != 2) parameters[i].parameter->tensor.mutable_grad() = at::tensor({values[i], 0.0}, at::kFloat);
  }
  const auto norms = block_norms(parameters);
  ASSERT_EQ(norms.size(), 2u);  // resblocks.1 has no gradient
  EXPECT_EQ(norms[0].block, "resblocks.0");
  EXPECT_DOUBLE_EQ(norms[0].norm, 5);
  EXPECT_EQ(norms[1].block, "head");
  EXPECT_DOUBLE_EQ(norms[1].norm, 6);
  EXPECT_NEAR(global_norm(parameters).item<double>(), std::hypot(5, 6), 1e-6);
}

}  // namespace
}  // namespace dalle::optim

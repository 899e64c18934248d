// Weights of another size: what is taken, what is not, and what the report says of it.
#include "dalle/models/partial_load.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dalle/core/error.h"
#include "dalle/core/str.h"
#include "dalle/models/load.h"
#include "support/tensor_matchers.h"

namespace dalle::models {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

PriorConfig small() {
  return {.text_context = 5,
          .text_vocab_size = 11,
          .grid_size = 4,
          .image_vocab_size = 13,
          .dim = 16,
          .num_heads = 2,
          .num_layers = 3,
          .conv_kernel = 5};
}

std::unique_ptr<Prior> made(const PriorConfig& config, uint64_t seed) {
  auto prior = std::make_unique<Prior>(config);
  prior->materialize(at::kCPU);
  prior->initialize(seed);
  const c10::NoGradGuard no_grad;
  at::manual_seed(static_cast<int64_t>(seed));
  for (const auto& [name, p] : prior->named_parameters()) p->tensor.copy_(at::randn(p->tensor.sizes()));
  return prior;
}

Tensor value(const Prior& prior, const std::string& wanted) {
  for (const auto& [name, p] : prior.named_parameters()) {
    if (name == wanted) return p->tensor.detach().clone();
  }
  throw std::runtime_error(wanted);
}

TEST(PartialLoad, TheSameSizeIsLoadedWhole) {
  const auto source = made(small(), 1), target = made(small(), 2);
  const auto load = load_what_fits(*target, named_tensors(*source), "file");
  EXPECT_EQ(load.num_whole, load.num_parameters);
  EXPECT_EQ(load.report(), dalle::str(load.num_parameters, " of ", load.num_parameters, " parameters loaded whole"));
  for (const auto& [name, p] : target->named_parameters()) {
    EXPECT_TRUE(testing::bitwise_equal(p->tensor.detach(), value(*source, name))) << name;
  }
}

TEST(PartialLoad, MoreLayersKeepTheirStart) {
  PriorConfig deeper = small();
  deeper.num_layers = 5;
  const auto source = made(small(), 1), target = made(deeper, 2);
  const Tensor start = value(*target, "transformer.resblocks.4.mlp.c_fc.weight");
  const auto load = load_what_fits(*target, named_tensors(*source), "file");
  EXPECT_TRUE(testing::bitwise_equal(value(*target, "transformer.resblocks.2.mlp.c_fc.weight"),
                                     value(*source, "transformer.resblocks.2.mlp.c_fc.weight")));
  EXPECT_TRUE(testing::bitwise_equal(value(*target, "transformer.resblocks.4.mlp.c_fc.weight"), start));
  EXPECT_EQ(load.num_whole, load.num_parameters - 2 * 12);
  EXPECT_EQ(load.not_loaded.size(), 12U) << "one line for both new layers";
  EXPECT_THAT(load.not_loaded, ::testing::Contains("transformer.resblocks.*.mlp.c_fc.weight (2): not in the file"));
  EXPECT_THAT(load.in_part, IsEmpty());
  EXPECT_THAT(load.not_used, IsEmpty());
}

TEST(PartialLoad, AnotherGridContextAndVocabularyGoByRows) {
  PriorConfig larger = small();
  larger.grid_size = 6;
  larger.text_context = 7;
  larger.text_vocab_size = 8;  // fewer
  larger.image_vocab_size = 20;
  const auto source = made(small(), 1), target = made(larger, 2);
  const Tensor start = value(*target, "image_row_embedding.weight"), bias = value(*target, "image_head.bias");
  const auto load = load_what_fits(*target, named_tensors(*source), "file");
  const Tensor rows = value(*target, "image_row_embedding.weight");
  EXPECT_TRUE(testing::bitwise_equal(rows.slice(0, 0, 4), value(*source, "image_row_embedding.weight")));
  EXPECT_TRUE(testing::bitwise_equal(rows.slice(0, 4), start.slice(0, 4)));
  EXPECT_TRUE(
      testing::bitwise_equal(value(*target, "text_head.weight"), value(*source, "text_head.weight").slice(0, 0, 8)));
  EXPECT_TRUE(testing::bitwise_equal(value(*target, "image_head.bias"),
                                     at::cat({value(*source, "image_head.bias"), bias.slice(0, 13)})));
  EXPECT_THAT(
      load.report(),
      AllOf(HasSubstr("loaded in part"),
            HasSubstr("image_row_embedding.weight: the first 4 rows; the file has 4, the model 6"),
            HasSubstr("text_head.bias: the first 8 rows; the file has 11, the model 8"), Not(HasSubstr("not loaded"))));
}

TEST(PartialLoad, NoPartOfAProjectionIsTaken) {
  PriorConfig wider = small();
  wider.dim = 32;
  const auto source = made(small(), 1), target = made(wider, 2);
  const Tensor start = value(*target, "transformer.resblocks.0.attn.in_proj_bias");
  const auto load = load_what_fits(*target, named_tensors(*source), "file");
  EXPECT_EQ(load.num_whole, 2) << "the biases of the heads alone do not depend on the width";
  EXPECT_THAT(load.in_part, IsEmpty());
  EXPECT_TRUE(testing::bitwise_equal(value(*target, "transformer.resblocks.0.attn.in_proj_bias"), start))
      << "its thirds are q, k and v";
  EXPECT_THAT(load.report(),
              HasSubstr("transformer.resblocks.*.attn.in_proj_weight (3): the file has [48, 16], the model [96, 32]"));
}

TEST(PartialLoad, WhatTheModelHasNoPlaceForIsNamed) {
  PriorConfig normed = small();
  normed.qk_norm = true;
  const auto source = made(normed, 1), target = made(small(), 2);
  const auto load = load_what_fits(*target, named_tensors(*source), "file");
  EXPECT_THAT(
      load.not_used,
      ElementsAre("transformer.resblocks.*.attn.q_norm.weight (3)", "transformer.resblocks.*.attn.q_norm.bias (3)",
                  "transformer.resblocks.*.attn.k_norm.weight (3)", "transformer.resblocks.*.attn.k_norm.bias (3)"));
}

TEST(PartialLoad, AFileOfSomethingElseIsRefused) {
  const auto target = made(small(), 2);
  EXPECT_THROW(load_what_fits(*target, {{"encoder.w", at::ones({3})}}, "file"), CheckpointError);
}

}  // namespace
}  // namespace dalle::models

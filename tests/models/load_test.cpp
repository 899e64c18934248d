// Models out of checkpoints: the same outputs, the EMA where asked, and refusals that say what does not fit.
#include "dalle/models/load.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dalle/config/fields.h"
#include "dalle/core/error.h"
#include "dalle/storage/run_checkpoints.h"
#include "support/temp_directory.h"
#include "support/tensor_matchers.h"
#include "support/thrown_message.h"

namespace dalle::models {
namespace {

using storage::Checkpoint;
using testing::bitwise_equal;
using ::testing::HasSubstr;

const DvaeConfig kDvae{.image_size = 16, .vocab_size = 12, .hidden_dim = 8, .num_groups = 2, .decoder_init_dim = 4};
const PriorConfig kPrior{.text_context = 4,
                         .text_vocab_size = 9,
                         .grid_size = 2,
                         .image_vocab_size = 7,
                         .dim = 8,
                         .num_heads = 2,
                         .num_layers = 2};
const ClipConfig kClip{.image_size = 8,
                       .patch_size = 4,
                       .vision_dim = 8,
                       .vision_layers = 1,
                       .vision_heads = 2,
                       .text_context = 5,
                       .text_vocab_size = 11,
                       .text_dim = 8,
                       .text_layers = 1,
                       .text_heads = 2,
                       .embed_dim = 6};

template <class Model, class Config>
std::unique_ptr<Model> initialized(const Config& config, uint64_t seed) {
  auto model = std::make_unique<Model>(config);
  model->materialize(at::kCPU);
  model->initialize(seed);
  return model;
}

/// A checkpoint whose EMA weights are those of seed 2 and whose own are of seed 1.
template <class Model, class Config>
Checkpoint checkpoint_of(const std::string& kind, const Config& config) {
  Checkpoint checkpoint{.kind = kind,
                        .config_yaml = "name: test\n",
                        .model_config_yaml = config::emit_yaml(config::dump(config)),
                        .step = 5};
  checkpoint.model = named_tensors(*initialized<Model>(config, 1));
  checkpoint.ema = named_tensors(*initialized<Model>(config, 2));
  checkpoint.identities = {{"dvae", "abc"}};
  return checkpoint;
}

void expect_same_parameters(const layers::Module& a, const layers::Module& b) {
  const auto left = a.named_parameters(), right = b.named_parameters();
  ASSERT_EQ(left.size(), right.size());
  for (size_t i = 0; i < left.size(); ++i) {
    EXPECT_EQ(left[i].name, right[i].name);
    EXPECT_TRUE(bitwise_equal(left[i].parameter->tensor, right[i].parameter->tensor)) << left[i].name;
  }
}

TEST(Load, EachModelComesBackWithItsConfigAndWeights) {
  testing::TempDirectory scratch("load-models");
  storage::save_checkpoint(scratch / "dvae", checkpoint_of<Dvae>("dvae", kDvae));
  storage::save_checkpoint(scratch / "prior", checkpoint_of<Prior>("prior", kPrior));
  storage::save_checkpoint(scratch / "clip", checkpoint_of<Clip>("clip", kClip));
  const LoadOptions own{.use_ema = false}, averaged{.use_ema = true};
  const auto dvae = load_dvae(scratch / "dvae", own);
  EXPECT_EQ(dvae.model->config().vocab_size, 12);
  EXPECT_EQ(dvae.step, 5);
  EXPECT_EQ(dvae.identities.at("dvae"), "abc");
  expect_same_parameters(*dvae.model, *initialized<Dvae>(kDvae, 1));
  expect_same_parameters(*load_dvae(scratch / "dvae", averaged).model, *initialized<Dvae>(kDvae, 2));
  expect_same_parameters(*load_prior(scratch / "prior", averaged).model, *initialized<Prior>(kPrior, 2));
  expect_same_parameters(*load_clip(scratch / "clip", own).model, *initialized<Clip>(kClip, 1));
  for (const auto& [name, parameter] : dvae.model->named_parameters())
    EXPECT_FALSE(parameter->tensor.requires_grad()) << name;
}

TEST(Load, FolderRunDirectoryAndBareFileAreTheSameModel) {
  testing::TempDirectory scratch("load-places");
  const Checkpoint checkpoint = checkpoint_of<Dvae>("dvae", kDvae);
  storage::save_checkpoint(storage::checkpoint_path(scratch / "run", 5), checkpoint);
  storage::update_latest(scratch / "run", storage::checkpoint_name(5));
  storage::write_bare_checkpoint(scratch / "dvae.safetensors", checkpoint);
  const auto folder = load_dvae(storage::checkpoint_path(scratch / "run", 5), {});
  for (const char* place : {"run", "dvae.safetensors"}) {
    const auto other = load_dvae(scratch / place, {});
    expect_same_parameters(*other.model, *folder.model);
    EXPECT_EQ(other.identity, folder.identity) << place;
    EXPECT_EQ(other.step, 5) << place;
  }
  EXPECT_NE(load_dvae(scratch / "run", {.use_ema = false}).identity, folder.identity);
}

TEST(Load, PrecisionChangesTheComputationNotTheWeights) {
  testing::TempDirectory scratch("load-precision");
  storage::save_checkpoint(scratch / "prior", checkpoint_of<Prior>("prior", kPrior));
  const auto half = load_prior(scratch / "prior", {.precision = Precision::kBf16});
  EXPECT_EQ(half.model->compute().dtype, at::kBFloat16);
  expect_same_parameters(*half.model, *load_prior(scratch / "prior", {}).model);
}

TEST(Load, AnotherKindAndAMissingPathAreConfigErrors) {
  testing::TempDirectory scratch("load-kind");
  storage::save_checkpoint(scratch / "dvae", checkpoint_of<Dvae>("dvae", kDvae));
  EXPECT_THROW(load_prior(scratch / "dvae", {}), ConfigError);
  EXPECT_THAT(testing::message_of<Error>([&] { load_prior(scratch / "dvae", {}); }),
              HasSubstr("a checkpoint of a prior"));
  EXPECT_THROW(load_dvae(scratch / "nothing", {}), ConfigError);
}

TEST(Load, WeightsThatDoNotFitAreNamed) {
  testing::TempDirectory scratch("load-fit");
  Checkpoint checkpoint = checkpoint_of<Dvae>("dvae", kDvae);
  checkpoint.ema.clear();
  checkpoint.model[0].tensor = at::zeros({2, 2});
  checkpoint.model[1].name = "stray";
  storage::save_checkpoint(scratch / "c", checkpoint);
  EXPECT_THROW(load_dvae(scratch / "c", {}), CheckpointError);
  const std::string message = testing::message_of<Error>([&] { load_dvae(scratch / "c", {}); });
  EXPECT_THAT(message, HasSubstr("3 differences"));
  EXPECT_THAT(message, HasSubstr("encoder.blocks.input.w is [2, 2]"));
  EXPECT_THAT(message, HasSubstr("encoder.blocks.input.b is missing"));
  EXPECT_THAT(message, HasSubstr("stray is not part of the model"));
}

TEST(Load, LoadParametersIsAllOrNothing) {
  const auto model = initialized<Dvae>(kDvae, 1);
  auto tensors = named_tensors(*initialized<Dvae>(kDvae, 2));
  tensors.pop_back();
  EXPECT_THROW(load_parameters(*model, tensors, "here"), CheckpointError);
  expect_same_parameters(*model, *initialized<Dvae>(kDvae, 1));
}

TEST(Load, IdentityHangsOnWeightsAndArchitectureOnly) {
  const auto a = named_tensors(*initialized<Dvae>(kDvae, 1)), b = named_tensors(*initialized<Dvae>(kDvae, 2));
  const std::string yaml = config::emit_yaml(config::dump(kDvae));
  auto reversed = a;
  std::reverse(reversed.begin(), reversed.end());
  EXPECT_EQ(identity_of(yaml, a), identity_of(yaml, reversed));
  EXPECT_NE(identity_of(yaml, a), identity_of(yaml, b));
  EXPECT_NE(identity_of(yaml, a), identity_of(yaml + "x: 1\n", a));
  for (const size_t tensor : {size_t{0}, a.size() - 1}) {  // one weight is enough
    auto nudged = a;
    nudged[tensor].tensor = a[tensor].tensor.clone(at::MemoryFormat::Contiguous);
    nudged[tensor].tensor.view(-1)[0] += 1e-6;
    EXPECT_NE(identity_of(yaml, nudged), identity_of(yaml, a)) << a[tensor].name;
  }
}

}  // namespace
}  // namespace dalle::models

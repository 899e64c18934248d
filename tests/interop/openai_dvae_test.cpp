// The released dVAE's files: modules pickled by the dall-e package (tests/golden/torch, the weights of dvae.safetensors).
#include "dalle/interop/openai_dvae.h"

#include <gmock/gmock.h>

#include "dalle/config/fields.h"
#include "dalle/core/error.h"
#include "dalle/interop/weight_commands.h"
#include "dalle/layers/block_runner.h"
#include "dalle/models/load.h"
#include "dalle/storage/safetensors.h"
#include "dalle/storage/torch_file.h"
#include "support/golden.h"
#include "support/temp_directory.h"
#include "support/tensor_matchers.h"
#include "support/thrown_message.h"

namespace dalle::interop {
namespace {

namespace fs = std::filesystem;
using storage::NamedTensor;
using ::testing::AllOf;
using ::testing::HasSubstr;
using testing::message_of;

OpenaiDvaeFiles golden_files() {
  return {.encoder = testing::golden_path("torch/encoder.pkl"),
          .decoder = testing::golden_path("torch/decoder.pkl"),
          .image_size = 32};
}

/// The golden weights, as state dicts to bend.
struct Parts {
  std::vector<NamedTensor> encoder = storage::read_torch_file(golden_files().encoder).tensors;
  std::vector<NamedTensor> decoder = storage::read_torch_file(golden_files().decoder).tensors;

  storage::Checkpoint import(const testing::TempDirectory& scratch) const {
    storage::write_torch_state_dict(scratch / "e.pt", encoder);
    storage::write_torch_state_dict(scratch / "d.pt", decoder);
    return import_openai_dvae({.encoder = scratch / "e.pt", .decoder = scratch / "d.pt", .image_size = 32});
  }
};

Tensor& named(std::vector<NamedTensor>& tensors, const std::string& name) {
  for (auto& entry : tensors) {
    if (entry.name == name) return entry.tensor;
  }
  throw std::runtime_error("no tensor " + name);
}

TEST(OpenaiDvae, PickledModulesComputeWhatThePackageComputes) {
  const testing::TempDirectory scratch("openai-dvae");
  storage::save_checkpoint(scratch / "dvae", import_openai_dvae(golden_files()));
  const auto loaded = models::load_dvae(scratch / "dvae", {});
  EXPECT_EQ(loaded.model->config().image_size, 32);
  EXPECT_EQ(loaded.model->config().hidden_dim, 8);
  EXPECT_EQ(loaded.model->config().vocab_size, 16);
  EXPECT_EQ(loaded.model->config().num_groups, 4);
  EXPECT_EQ(loaded.model->config().num_blocks_per_group, 2);
  EXPECT_EQ(loaded.model->config().decoder_init_dim, 8);
  const testing::Golden golden("dvae.safetensors");
  for (const auto& [name, tensor] : models::named_tensors(*loaded.model))
    EXPECT_TRUE(testing::bitwise_equal(tensor, golden.at(name))) << name;
  EXPECT_TRUE(testing::close_to(loaded.model->encode_logits(golden.at("pixels")), golden.at("encoder.output"), 1e-5));
  EXPECT_TRUE(
      testing::close_to(loaded.model->decode_stats(golden.at("decoder.input")), golden.at("decoder.output"), 1e-5));
}

TEST(OpenaiDvae, EveryFormatGivesTheSameIdentity) {
  const testing::TempDirectory scratch("openai-formats");
  const auto from_modules = import_openai_dvae(golden_files());
  const std::string identity = from_modules.identities.at("model");
  const Parts parts;
  EXPECT_EQ(parts.import(scratch).identities.at("model"), identity);
  storage::write_safetensors(scratch / "e.safetensors", {parts.encoder, {}});
  EXPECT_EQ(import_openai_dvae({scratch / "e.safetensors", golden_files().decoder, 32}).identities.at("model"),
            identity);
  storage::write_torch_state_dict(scratch / "both.pt", from_modules.model);
  EXPECT_EQ(import_openai_dvae({scratch / "both.pt", scratch / "both.pt", 32}).identities.at("model"), identity);
}

TEST(OpenaiDvae, SizesComeFromTheTensorsAndHalfTypesBecomeF32) {
  models::DvaeConfig config{.image_size = 16,
                            .vocab_size = 12,
                            .hidden_dim = 4,
                            .num_groups = 3,
                            .num_blocks_per_group = 1,
                            .decoder_init_dim = 6};
  models::Dvae dvae(config);
  dvae.materialize(at::kCPU);
  dvae.initialize(3);
  const testing::TempDirectory scratch("openai-sizes");
  auto tensors = models::named_tensors(dvae);
  for (size_t i = 0; i < tensors.size(); ++i)
    tensors[i].tensor = tensors[i].tensor.to(i % 2 == 0 ? at::kHalf : at::kBFloat16);
  storage::write_safetensors(scratch / "x.safetensors", {tensors, {}});
  const auto checkpoint = import_openai_dvae({scratch / "x.safetensors", scratch / "x.safetensors", 16});
  EXPECT_EQ(checkpoint.model_config_yaml, config::emit_yaml(config::dump(config)));
  ASSERT_EQ(checkpoint.model.size(), tensors.size());
  for (const auto& [name, tensor] : checkpoint.model)
    EXPECT_TRUE(testing::bitwise_equal(tensor, storage::find_tensor(tensors, name)->to(at::kFloat))) << name;
}

TEST(OpenaiDvae, EveryDifferenceIsNamed) {
  const testing::TempDirectory scratch("openai-differences");
  Parts parts;
  std::erase_if(parts.encoder, [](const auto& entry) { return entry.name == "blocks.group_2.block_1.id_path.w"; });
  parts.encoder.push_back({"blocks.group_1.block_1.id_path.w", at::zeros({8, 8, 1, 1})});
  named(parts.decoder, "blocks.group_3.block_2.res_path.conv_2.w") = at::zeros({4, 4, 1, 1});
  parts.decoder.push_back({"extra", at::zeros({1})});
  EXPECT_THAT(
      message_of<CheckpointError>([&] { parts.import(scratch); }),
      AllOf(HasSubstr("4 differences"), HasSubstr("encoder.blocks.group_2.block_1.id_path.w is missing"),
            HasSubstr("encoder.blocks.group_1.block_1.id_path.w is not part of the model"),
            HasSubstr(
                "decoder.blocks.group_3.block_2.res_path.conv_2.w is [4, 4, 1, 1] where the model has [4, 4, 3, 3]"),
            HasSubstr("decoder.extra is not part of the model")));
}

TEST(OpenaiDvae, WhatSizesHangOnIsCheckedFirst) {
  const testing::TempDirectory scratch("openai-bent");
  const auto refusal = [&](const std::function<void(Parts&)>& bend) {
    Parts parts;
    bend(parts);
    return message_of<CheckpointError>([&] { parts.import(scratch); });
  };
  EXPECT_THAT(refusal([](Parts& p) { std::swap(p.encoder, p.decoder); }), HasSubstr("swapped?"));
  EXPECT_THAT(
      refusal([](Parts& p) { std::erase_if(p.encoder, [](const auto& e) { return e.name == "blocks.input.w"; }); }),
      HasSubstr("a tensor encoder.blocks.input.w"));
  EXPECT_THAT(refusal([](Parts& p) {
                named(p.encoder, "blocks.input.w") = at::zeros({0, 3, 7, 7});
              }),
              HasSubstr("[0, 3, 7, 7]"));
  EXPECT_THAT(refusal([](Parts& p) {
                named(p.encoder, "blocks.input.w") = at::zeros({6, 3, 7, 7});
              }),
              HasSubstr("divisible by 4"));
  EXPECT_THAT(refusal([](Parts& p) {
                p.encoder.push_back({"blocks.group_99999999999.x", at::zeros({1})});
              }),
              HasSubstr("1 to 8 groups"));
  EXPECT_THAT(refusal([](Parts& p) {
                p.encoder.push_back({"blocks.group_1.block_101.x", at::zeros({1})});
              }),
              HasSubstr("1 to 100 blocks"));
  EXPECT_THAT(refusal([](Parts& p) { named(p.decoder, "blocks.output.conv.b")[2] = NAN; }),
              HasSubstr("finite numbers in decoder.blocks.output.conv.b"));
}

TEST(OpenaiDvae, APictureSizeThatDoesNotFitIsAConfigError) {
  OpenaiDvaeFiles files = golden_files();
  files.image_size = 36;
  EXPECT_THAT(message_of<ConfigError>([&] { import_openai_dvae(files); }), HasSubstr("--image-size"));
}

}  // namespace
}  // namespace dalle::interop

#include "dalle/interop/openai_dvae.h"

#include <ATen/core/Tensor.h>

#include <algorithm>

#include "dalle/config/fields.h"
#include "dalle/core/str.h"
#include "dalle/models/dvae.h"
#include "weight_file.h"

namespace dalle::interop {
namespace {

using storage::NamedTensor;

/// The shape of a kernel that all sizes hang on.
std::vector<int64_t> kernel(const ForeignWeights& halves, const std::string& name, int64_t width) {
  const auto shape = halves.shape(name);
  if (shape.size() != 4 || shape[2] != width || shape[3] != width) {
    halves.fail(str(name, " of shape [out, in, ", width, ", ", width, "]"), dalle::str(at::IntArrayRef(shape)),
                "are encoder and decoder swapped?");
  }
  return shape;
}

void add_half(const std::filesystem::path& path, const std::string& side, ForeignWeights& halves) {
  std::vector<NamedTensor> tensors = read_weight_file(path);
  const auto is_ours = [&](const NamedTensor& entry) { return entry.name.starts_with(side); };
  const bool both = std::any_of(tensors.begin(), tensors.end(), is_ours);
  for (auto& entry : tensors) {
    if (!both) entry.name = side + entry.name;
    if (is_ours(entry)) halves.tensors.push_back(std::move(entry));
  }
}

models::DvaeConfig infer_dvae_config(const ForeignWeights& halves, int64_t image_size) {
  models::DvaeConfig config;
  config.image_size = image_size;
  config.hidden_dim = kernel(halves, "encoder.blocks.input.w", 7)[0];
  config.vocab_size = kernel(halves, "encoder.blocks.output.conv.w", 1)[0];
  config.decoder_init_dim = kernel(halves, "decoder.blocks.input.w", 1)[0];
  config.num_groups = halves.largest_number("encoder.blocks.group_");
  config.num_blocks_per_group = halves.largest_number("encoder.blocks.group_1.block_");
  constexpr int64_t kMaxGroups = 8, kMaxBlocks = 100;
  if (config.num_groups < 1 || config.num_groups > kMaxGroups || config.num_blocks_per_group < 1 ||
      config.num_blocks_per_group > kMaxBlocks) {
    halves.fail(str("1 to ", kMaxGroups, " groups of 1 to ", kMaxBlocks, " blocks"),
                str(config.num_groups, " of ", config.num_blocks_per_group));
  }
  if (config.hidden_dim % 4 != 0) halves.fail("n_hid divisible by 4", str(config.hidden_dim));
  config.validate("--image-size");
  return config;
}

}  // namespace

storage::Checkpoint import_openai_dvae(const OpenaiDvaeFiles& files) {
  ForeignWeights halves;
  halves.place = str(files.encoder.string(), " and ", files.decoder.string());
  add_half(files.encoder, "encoder.", halves);
  add_half(files.decoder, "decoder.", halves);
  const models::DvaeConfig config = infer_dvae_config(halves, files.image_size);
  return halves.into_checkpoint(
      models::Dvae(config), "dvae", config::emit_yaml(config::dump(config)),
      str("the tensors of a dVAE with n_hid ", config.hidden_dim, ", ", config.num_groups, " groups of ",
          config.num_blocks_per_group, " blocks, ", config.vocab_size, " codes of ", config.decoder_init_dim));
}

}  // namespace dalle::interop

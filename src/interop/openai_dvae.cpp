#include "dalle/interop/openai_dvae.h"

#include <ATen/ATen.h>

#include <charconv>

#include "dalle/config/fields.h"
#include "dalle/core/error.h"
#include "dalle/core/str.h"
#include "dalle/models/dvae.h"
#include "dalle/models/load.h"
#include "weight_file.h"

namespace dalle::interop {
namespace {

using storage::NamedTensor;
using Shape = std::vector<int64_t>;

/// The two files' tensors under our names, and how to talk about them.
struct Halves {
  std::vector<NamedTensor> tensors;
  std::string place;

  [[noreturn]] void fail(const std::string& expected, const std::string& got, const std::string& hint = "") const {
    throw CheckpointError(Problem{.place = place, .expected = expected, .got = got, .hint = hint});
  }

  /// The shape of a kernel that all sizes hang on.
  Shape kernel(const std::string& name, int64_t width) const {
    const Tensor* tensor = storage::find_tensor(tensors, name);
    if (tensor == nullptr) fail("a tensor " + name, "none");
    if (tensor->dim() != 4 || tensor->size(2) != width || tensor->size(3) != width || tensor->numel() == 0) {
      fail(str(name, " of shape [out, in, ", width, ", ", width, "]"), dalle::str(tensor->sizes()),
           "are encoder and decoder swapped?");
    }
    return tensor->sizes().vec();
  }
};

void add_half(const std::filesystem::path& path, const std::string& side, Halves& halves) {
  std::vector<NamedTensor> tensors = read_weight_file(path);
  const auto is_ours = [&](const NamedTensor& entry) { return entry.name.starts_with(side); };
  const bool both = std::any_of(tensors.begin(), tensors.end(), is_ours);
  for (auto& entry : tensors) {
    if (!both) entry.name = side + entry.name;
    if (is_ours(entry)) halves.tensors.push_back(std::move(entry));
  }
}

/// The largest N for which a tensor's name starts with `prefix` + N + "."; 0 where there is none.
int64_t count_numbered(const Halves& halves, const std::string& prefix) {
  int64_t largest = 0;
  for (const auto& entry : halves.tensors) {
    if (!entry.name.starts_with(prefix)) continue;
    int64_t number = 0;
    const char* end = entry.name.data() + entry.name.size();
    const auto [stop, error] = std::from_chars(entry.name.data() + prefix.size(), end, number);
    if (error == std::errc() && stop != end && *stop == '.') largest = std::max(largest, number);
  }
  return largest;
}

models::DvaeConfig infer_config(const Halves& halves, int64_t image_size) {
  models::DvaeConfig config;
  config.image_size = image_size;
  config.hidden_dim = halves.kernel("encoder.blocks.input.w", 7)[0];
  config.vocab_size = halves.kernel("encoder.blocks.output.conv.w", 1)[0];
  config.decoder_init_dim = halves.kernel("decoder.blocks.input.w", 1)[0];
  config.num_groups = count_numbered(halves, "encoder.blocks.group_");
  config.num_blocks_per_group = count_numbered(halves, "encoder.blocks.group_1.block_");
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

void check_fit(const Halves& halves, const models::DvaeConfig& config) {
  const auto differences = models::parameter_differences(models::Dvae(config), halves.tensors);
  if (differences.empty()) return;
  constexpr size_t kMaxShown = 200;
  std::string text = str(differences.size(), differences.size() == 1 ? " difference:" : " differences:");
  for (size_t i = 0; i < std::min(differences.size(), kMaxShown); ++i) text += "\n    " + differences[i];
  if (differences.size() > kMaxShown) text += "\n    and more";
  halves.fail(str("the tensors of a dVAE with n_hid ", config.hidden_dim, ", ", config.num_groups, " groups of ",
                  config.num_blocks_per_group, " blocks, ", config.vocab_size, " codes of ", config.decoder_init_dim),
              text);
}

}  // namespace

storage::Checkpoint import_openai_dvae(const OpenaiDvaeFiles& files) {
  Halves halves;
  halves.place = str(files.encoder.string(), " and ", files.decoder.string());
  add_half(files.encoder, "encoder.", halves);
  add_half(files.decoder, "decoder.", halves);
  const models::DvaeConfig config = infer_config(halves, files.image_size);
  check_fit(halves, config);
  storage::Checkpoint checkpoint;
  checkpoint.kind = "dvae";
  checkpoint.model_config_yaml = config::emit_yaml(config::dump(config));
  for (auto& [name, tensor] : halves.tensors) {
    if (!at::isfinite(tensor).all().item<bool>()) halves.fail("finite numbers in " + name, "NaN or infinite ones");
    checkpoint.model.push_back({name, tensor.to(at::kFloat).contiguous()});
  }
  checkpoint.identities["model"] = models::identity_of(checkpoint.model_config_yaml, checkpoint.model);
  return checkpoint;
}

}  // namespace dalle::interop

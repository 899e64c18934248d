#include "weight_file.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <charconv>

#include "dalle/core/error.h"
#include "dalle/core/str.h"
#include "dalle/models/load.h"
#include "dalle/storage/safetensors.h"
#include "dalle/storage/torch_file.h"

namespace dalle::interop {

std::vector<storage::NamedTensor> read_weight_file(const std::filesystem::path& path) {
  if (path.extension() == ".safetensors") return storage::read_safetensors(path).tensors;
  return storage::read_torch_file(path).tensors;
}

void ForeignWeights::fail(const std::string& expected, const std::string& got, const std::string& hint) const {
  throw CheckpointError(Problem{.place = place, .expected = expected, .got = got, .hint = hint});
}

std::vector<int64_t> ForeignWeights::shape(const std::string& name) const {
  const Tensor* tensor = storage::find_tensor(tensors, name);
  if (tensor == nullptr) fail("a tensor " + name, "none");
  if (tensor->numel() == 0) fail("numbers in " + name, dalle::str("shape ", tensor->sizes()));
  return tensor->sizes().vec();
}

int64_t ForeignWeights::largest_number(const std::string& prefix) const {
  int64_t largest = -1;
  for (const auto& entry : tensors) {
    if (!entry.name.starts_with(prefix)) continue;
    int64_t number = 0;
    const char* end = entry.name.data() + entry.name.size();
    const auto [stop, error] = std::from_chars(entry.name.data() + prefix.size(), end, number);
    if (error == std::errc() && stop != end && *stop == '.') largest = std::max(largest, number);
  }
  return largest;
}

storage::Checkpoint ForeignWeights::into_checkpoint(const layers::Module& model, const std::string& kind,
                                                    const std::string& model_config_yaml,
                                                    const std::string& expected) const {
  const auto differences = models::parameter_differences(model, tensors);
  if (!differences.empty()) {
    constexpr size_t kMaxShown = 200;
    std::string text = str(differences.size(), differences.size() == 1 ? " difference:" : " differences:");
    for (size_t i = 0; i < std::min(differences.size(), kMaxShown); ++i) text += "\n    " + differences[i];
    if (differences.size() > kMaxShown) text += "\n    and more";
    fail(expected, text);
  }
  storage::Checkpoint checkpoint;
  checkpoint.kind = kind;
  checkpoint.model_config_yaml = model_config_yaml;
  for (const auto& [name, tensor] : tensors) {
    if (!at::isfinite(tensor).all().item<bool>()) fail("finite numbers in " + name, "NaN or infinite ones");
    checkpoint.model.push_back({name, tensor.to(at::kFloat).contiguous()});
  }
  checkpoint.identities["model"] = models::identity_of(model_config_yaml, checkpoint.model);
  return checkpoint;
}

}  // namespace dalle::interop

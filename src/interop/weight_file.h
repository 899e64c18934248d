// Private to the imports: one weight file of another program, whatever its format, and what every import asks of it.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "dalle/layers/module.h"
#include "dalle/storage/checkpoint.h"

namespace dalle::interop {

/// .safetensors by their name, all others as files of torch.save or TorchScript archives. Throws as their readers do.
std::vector<storage::NamedTensor> read_weight_file(const std::filesystem::path& path);

/// The tensors of one model under our names, and how to talk about them.
struct ForeignWeights {
  std::vector<storage::NamedTensor> tensors;
  std::string place;

  [[noreturn]] void fail(const std::string& expected, const std::string& got, const std::string& hint = "") const;
  bool has(const std::string& name) const { return storage::find_tensor(tensors, name) != nullptr; }
  /// Sizes of a tensor that is there and not empty. Throws CheckpointError.
  std::vector<int64_t> shape(const std::string& name) const;
  /// The largest N for which a name starts with `prefix` + N + "."; -1 where there is none.
  int64_t largest_number(const std::string& prefix) const;

  /// Takes the tensors as this model's, in f32: throws CheckpointError naming every tensor that is missing, left over, of
  /// another shape, and the first one that is not finite. `expected` says what the sizes were read as.
  storage::Checkpoint into_checkpoint(const layers::Module& model, const std::string& kind,
                                      const std::string& model_config_yaml, const std::string& expected) const;
};

}  // namespace dalle::interop

#include "weight_file.h"

#include "dalle/storage/safetensors.h"
#include "dalle/storage/torch_file.h"

namespace dalle::interop {

std::vector<storage::NamedTensor> read_weight_file(const std::filesystem::path& path) {
  if (path.extension() == ".safetensors") return storage::read_safetensors(path).tensors;
  return storage::read_torch_file(path).tensors;
}

}  // namespace dalle::interop

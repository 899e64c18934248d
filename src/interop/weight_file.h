// One weight file of another program, whatever its format.
#pragma once

#include <filesystem>
#include <vector>

#include "dalle/storage/named_tensor.h"

namespace dalle::interop {

/// .safetensors by their name, all others as files of torch.save. Throws as their readers do.
std::vector<storage::NamedTensor> read_weight_file(const std::filesystem::path& path);

}  // namespace dalle::interop

// Identities: short hashes by which a checkpoint names the models and the tokenizer it belongs to.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "dalle/storage/named_tensor.h"

namespace dalle::storage {

/// 32 hex digits over the architecture's text and the tensors sorted by name (name, type, shape, contiguous bytes): the
/// same for any order, device and memory layout.
std::string model_identity(std::string_view architecture, const std::vector<NamedTensor>& tensors);

/// 32 hex digits over some bytes.
std::string bytes_identity(std::string_view bytes);

}  // namespace dalle::storage

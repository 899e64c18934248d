// A tensor and the name it has in a file.
#pragma once

#include <string>
#include <vector>

#include "dalle/core/tensor.h"

namespace dalle::storage {

struct NamedTensor {
  std::string name;
  Tensor tensor;
};

/// The tensor called `name`, or nullptr.
inline const Tensor* find_tensor(const std::vector<NamedTensor>& tensors, const std::string& name) {
  for (const auto& entry : tensors) {
    if (entry.name == name) return &entry.tensor;
  }
  return nullptr;
}

}  // namespace dalle::storage

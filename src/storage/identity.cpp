#include "dalle/storage/identity.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <span>

#include "dalle/core/hash.h"
#include "dalle/core/str.h"

namespace dalle::storage {
namespace {

/// Length first, so that no two lists of texts hash the same bytes.
void update_text(Hasher& hasher, std::string_view text) {
  hasher.update(str(text.size(), ":"));
  hasher.update(text);
}

}  // namespace

std::string model_identity(std::string_view architecture, const std::vector<NamedTensor>& tensors) {
  std::vector<const NamedTensor*> order;
  for (const auto& entry : tensors) order.push_back(&entry);
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) { return a->name < b->name; });
  Hasher hasher;
  update_text(hasher, architecture);
  for (const auto* entry : order) {
    const Tensor tensor = entry->tensor.detach().to(at::kCPU).contiguous();
    update_text(hasher, entry->name);
    update_text(hasher, dalle::str(tensor.scalar_type(), tensor.sizes()));
    if (tensor.numel() == 0) continue;
    hasher.update(std::span(static_cast<const std::byte*>(tensor.const_data_ptr()), tensor.nbytes()));
  }
  return hasher.hex();
}

std::string bytes_identity(std::string_view bytes) {
  Hasher hasher;
  hasher.update(bytes);
  return hasher.hex();
}

}  // namespace dalle::storage

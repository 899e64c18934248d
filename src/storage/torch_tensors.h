// Tensors out of a torch.save archive: what a pickle says of them, checked against the bytes of their storages.
#pragma once

#include <map>
#include <string>

#include "dalle/core/tensor.h"
#include "dalle/storage/pickle_reader.h"
#include "dalle/storage/zip_archive.h"

namespace dalle::storage {

class TorchTensors {
 public:
  /// `prefix` is the archive's folder, "archive/"; storages are its members "data/KEY".
  TorchTensors(const ZipReader& archive, std::string prefix, std::string place)
      : archive_(archive), prefix_(std::move(prefix)), place_(std::move(place)) {}

  /// True for what PyTorch pickles a tensor or parameter as, also of kinds that are not supported.
  static bool is_tensor(const PickleValue& value);

  /// A view of its storage, which is read once. `name` is for messages.
  Tensor make(const PickleValue& value, const std::string& name);

  /// Bytes of all storages read so far.
  uint64_t storage_bytes() const { return storage_bytes_; }

 private:
  Tensor storage(const PickleValue& id, const std::string& name);
  Tensor storage_bytes_of(const std::string& key, uint64_t size, const std::string& name);
  [[noreturn]] void fail(const std::string& name, const std::string& expected, const std::string& got) const;

  const ZipReader& archive_;
  std::string prefix_;
  std::string place_;
  std::map<std::string, Tensor> storages_;  // u8, by key
  uint64_t storage_bytes_ = 0;
};

}  // namespace dalle::storage

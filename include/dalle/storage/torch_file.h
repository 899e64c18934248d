// Files of torch.save and torch.jit.save: named tensors out of a state dict, a dict of dicts, a whole pickled nn.Module or a
// TorchScript archive (of whose code nothing is read), and a state dict written so that torch.load(weights_only=True) reads it. Reading runs nothing (storage/pickle_reader.h).
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "dalle/storage/named_tensor.h"

namespace dalle::storage {

struct TorchFile {
  std::vector<NamedTensor> tensors;  // under dotted names, in the order of PyTorch's state_dict()
  std::string type;                  // of what was saved: "dict", "dall_e.encoder.Encoder"
};

/// Tensors may be views of the same memory, with any strides, but none has more elements than its storage; parameters are
/// plain tensors. A dict gives its tensors under their keys, and those of dicts and modules in it under "KEY.NAME"; a
/// module gives what its state_dict() would, a TorchScript module all tensors among its attributes. Other values (numbers, texts) are passed over.
///
/// Throws FileError where the file cannot be read. CheckpointError, naming the file and the tensor, for files of PyTorch
/// before 1.6, big-endian data, tensors that are not plain (sparse, quantised, subclasses), sizes
/// that leave their storage, two tensors of one name, and everything that zip_archive.h and pickle_reader.h refuse.
TorchFile read_torch_file(const std::filesystem::path& path);

/// Writes an OrderedDict of contiguous CPU tensors as torch.save would, through an AtomicFile. It is the one pickle that
/// this project writes. Types as in safetensors.h. Throws FileError, and c10::ValueError for duplicate names, undefined or
/// meta tensors and other types.
void write_torch_state_dict(const std::filesystem::path& path, const std::vector<NamedTensor>& tensors);

}  // namespace dalle::storage

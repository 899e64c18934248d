// The tensors of a checkpoint in one file, or in pieces in several: "model.safetensors", or "model-00001-of-00004.safetensors"
// and so on, each written by one rank of a sharded run (docs/checkpoint_format.md). Readers take either, and any range of
// a tensor's numbers without the rest.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "dalle/storage/manifest.h"
#include "dalle/storage/named_tensor.h"

namespace dalle::storage {

/// Some neighbouring numbers of a tensor.
struct TensorPiece {
  std::string name;            // of the tensor
  std::vector<int64_t> shape;  // of the tensor
  int64_t begin = 0;           // where the piece begins among the tensor's numbers
  bool channels_last = false;  // the numbers' order is that of NHWC memory, else that of the shape
  Tensor values;               // [n], any device
};

/// "model-00002-of-00004.safetensors" of part 1 of 4
std::string part_file_name(const std::string& kind, int64_t part, int64_t num_parts);

/// Writes them as one file. Throws as write_safetensors does.
void write_pieces(const std::filesystem::path& path, const std::vector<TensorPiece>& pieces);

class TensorFiles {
 public:
  /// `kind`: "model", "ema" or "optimizer". Throws CheckpointError, naming file and tensor, where a part is missing, or where
  /// the pieces of a tensor disagree, overlap or do not cover it.
  TensorFiles(const std::filesystem::path& folder, const Manifest& manifest, const std::string& kind);

  bool empty() const { return tensors_.empty(); }
  /// In alphabetical order.
  std::vector<std::string> names() const;
  /// Shape of a tensor, or nullptr where there is none of that name.
  const std::vector<int64_t>* shape(const std::string& name) const;

  /// A whole tensor on the CPU, contiguous. Throws CheckpointError for an unknown name.
  Tensor read(const std::string& name) const;
  /// Its numbers [begin, end), in the order of NHWC memory or of the shape: [end - begin].
  Tensor read_range(const std::string& name, int64_t begin, int64_t end, bool channels_last = false) const;
  /// All of them.
  std::vector<NamedTensor> read_all() const;
  /// Compares the files' checksums with the manifest's. Throws CheckpointError.
  void verify() const;

 private:
  struct Chunk {
    size_t file = 0;
    uint64_t position = 0;  // byte of the file
    int64_t begin = 0, end = 0;
  };
  struct Entry {
    std::vector<int64_t> shape;
    at::ScalarType dtype = at::kFloat;
    bool channels_last = false;
    std::vector<Chunk> chunks;  // by rising begin
  };
  void add_file(const ManifestEntry& file);
  void check(const std::string& name, Entry& entry) const;
  const Entry& entry_of(const std::string& name) const;
  Tensor read_stored(const Entry& entry, int64_t begin, int64_t end) const;

  std::filesystem::path folder_;
  std::string kind_;
  std::vector<ManifestEntry> files_;
  std::map<std::string, Entry> tensors_;
};

}  // namespace dalle::storage

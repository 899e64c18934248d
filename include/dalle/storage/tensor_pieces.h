// The tensors of a checkpoint in one file, or in pieces in several: "model.safetensors", or "model-00001-of-00004.safetensors"
// and so on, each written by one rank of a sharded run (docs/checkpoint_format.md). Readers take either, and any range of
// a tensor's numbers without the rest.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "dalle/core/number_range.h"
#include "dalle/storage/manifest.h"
#include "dalle/storage/named_tensor.h"

namespace dalle::storage {

/// The order of a tensor's numbers: its dimensions from the slowest to the fastest, none where that is the shape's own.
/// {1, 0} is a transposed matrix, {0, 2, 3, 1} NHWC memory.
using DimensionOrder = std::vector<int64_t>;

/// Some of a tensor's numbers, in one or several stretches.
struct TensorPiece {
  std::string name;                 // of the tensor
  std::vector<int64_t> shape;       // of the tensor
  std::vector<NumberRange> ranges;  // which of the tensor's numbers, in the order below; none = all
  DimensionOrder order;
  Tensor values;  // [n], any device
};

/// The numbers of a whole tensor that a piece with these ranges and order has: [n].
Tensor numbers_of(const Tensor& whole, const std::vector<NumberRange>& ranges, const DimensionOrder& order = {});

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
  /// numbers_of() it: only these are read where they were written in this order, else all.
  Tensor read_ranges(const std::string& name, const std::vector<NumberRange>& ranges,
                     const DimensionOrder& order = {}) const;
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
    DimensionOrder order;
    std::vector<Chunk> chunks;  // by rising begin
  };
  void add_file(const ManifestEntry& file);
  void add_piece(const std::string& name, const Entry& own, const std::vector<NumberRange>& ranges, Chunk chunk,
                 const std::string& place);
  void check(const std::string& name, Entry& entry) const;
  const Entry& entry_of(const std::string& name) const;
  Tensor read_stored(const Entry& entry, const std::vector<NumberRange>& ranges) const;

  std::filesystem::path folder_;
  std::string kind_;
  std::vector<ManifestEntry> files_;
  std::map<std::string, Entry> tensors_;
};

}  // namespace dalle::storage

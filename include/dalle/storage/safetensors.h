// The safetensors format: an 8-byte little-endian header length, a JSON header, raw tensor bytes. No code is ever run.
// The reader takes a file for hostile: every number in the header is checked against the file's size before it is used.
#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "dalle/storage/named_tensor.h"

namespace dalle::storage {

struct SafetensorsFile {
  std::vector<NamedTensor> tensors;
  std::map<std::string, std::string> metadata;  // UTF-8 texts
};

/// Where one tensor lies in a file.
struct TensorInfo {
  std::string name;
  at::ScalarType dtype = at::kFloat;
  std::vector<int64_t> shape;
  uint64_t begin = 0;  // bytes, from the start of the data section
  uint64_t end = 0;
};

struct SafetensorsHeader {
  std::vector<TensorInfo> tensors;  // in the header's order
  std::map<std::string, std::string> metadata;
  uint64_t data_start = 0;  // bytes, from the start of the file
  uint64_t file_size = 0;   // bytes
};

/// Writes f32, f64, f16, bf16, i64, i32, i16, i8, u8 and bool tensors of any device and layout as contiguous rows, in the
/// order given, through an AtomicFile. Throws FileError (full disk), and c10::ValueError for duplicate names, undefined or
/// meta tensors and other types.
void write_safetensors(const std::filesystem::path& path, const SafetensorsFile& file);

/// The checked header alone. Throws FileError where the file cannot be read and CheckpointError, naming the file and the
/// tensor, for anything that is not a whole and consistent safetensors file: header length beyond the file, bad JSON,
/// duplicate names, unknown types, shapes that do not match their bytes, holes, overlaps, trailing bytes.
SafetensorsHeader read_safetensors_header(const std::filesystem::path& path);

/// All tensors, on the CPU, contiguous, in the header's order. Errors as above, and for bool tensors with bytes other
/// than 0 and 1.
SafetensorsFile read_safetensors(const std::filesystem::path& path);

}  // namespace dalle::storage

// Zip archives as PyTorch writes them: members stored uncompressed, tensors on 64-byte boundaries, zip64 where needed.
// The reader takes a file for hostile: every offset and size is checked against the file before it is used, members may
// not overlap, and no memory is taken for bytes that the file does not have. Compressed members are listed, not read.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "dalle/core/files.h"

namespace dalle::storage {

class InputFile;

struct ZipMember {
  std::string name;
  uint64_t header_offset = 0;  // bytes, from the start of the file
  uint64_t data_offset = 0;
  uint64_t stored_size = 0;  // bytes in the file
  uint64_t size = 0;         // bytes of the member; the same where it is not compressed
  uint32_t crc32 = 0;
  uint16_t method = 0;  // 0: stored
};

class ZipReader {
 public:
  /// Reads and checks the directory. Throws FileError where the file cannot be read and CheckpointError, naming the file
  /// and the member, for anything that is not a whole and consistent archive.
  explicit ZipReader(const std::filesystem::path& path);
  ~ZipReader();

  const std::vector<ZipMember>& members() const { return members_; }
  /// The member of this name, or nullptr.
  const ZipMember* find(std::string_view name) const;

  /// Fills `bytes`, which has the member's size. Throws CheckpointError for compressed members and where the checksum
  /// differs. A checksum of 0 is none: PyTorch writes that where torch.serialization.set_crc32_options(False) was called.
  void read(const ZipMember& member, std::span<std::byte> bytes) const;
  /// The whole member; CheckpointError where it is longer than `max_size`.
  std::string read_text(const ZipMember& member, uint64_t max_size) const;

 private:
  std::string place_;
  std::unique_ptr<InputFile> input_;
  std::vector<ZipMember> members_;
  std::unordered_map<std::string_view, const ZipMember*> by_name_;
};

/// Writes an archive through an AtomicFile: without commit() nothing is left.
class ZipWriter {
 public:
  explicit ZipWriter(const std::filesystem::path& path) : out_(path) {}

  /// A stored member whose data begins on a 64-byte boundary, as PyTorch's do. Throws FileError, and c10::ValueError for
  /// a name that is empty or longer than the format allows.
  void add(const std::string& name, std::span<const std::byte> bytes);
  void add(const std::string& name, std::string_view text);
  void commit();

 private:
  AtomicFile out_;
  uint64_t position_ = 0;
  std::vector<ZipMember> members_;
};

}  // namespace dalle::storage

// Files that are whole or absent: written beside their place, flushed to disk, then renamed.
#pragma once

#include <cstddef>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>

namespace dalle {

/// The whole content. Throws FileError with the path and the system's reason.
std::string read_file(const std::filesystem::path& path);

/// A file being written as PATH.tmp-PID; commit() flushes (fsync) and renames it into place. Without commit() the
/// temporary is removed. Every failed write (a full disk) throws FileError and leaves PATH as it was.
class AtomicFile {
 public:
  explicit AtomicFile(std::filesystem::path path);
  ~AtomicFile();
  AtomicFile(const AtomicFile&) = delete;
  AtomicFile& operator=(const AtomicFile&) = delete;
  void write(std::span<const std::byte> bytes);
  void write(std::string_view text);
  void commit();

 private:
  std::filesystem::path path_;
  std::filesystem::path temporary_;
  int descriptor_ = -1;
};

void write_file(const std::filesystem::path& path, std::string_view content);

/// Flushes a directory's entries, so that a rename in it survives a power cut.
void sync_directory(const std::filesystem::path& directory);

/// Bytes free for this user on the file system of `path`.
uint64_t free_disk_bytes(const std::filesystem::path& path);

/// Appends one line with a single write(2) and no buffering (metrics.jsonl): a killed run loses no whole line.
void append_line(const std::filesystem::path& path, std::string_view line);

}  // namespace dalle

// A file that one process at a time holds (flock): the kernel frees it however the process ends.
#pragma once

#include <filesystem>
#include <string>

namespace dalle {

class FileLock {
 public:
  /// Holds nothing.
  FileLock() = default;
  /// Makes the file `path` where it is not there, locks it and writes this process's id into it. Throws ConfigError, whose place
  /// is `what` and which names the holder, where another process has it, and FileError where it cannot be opened. A file
  /// system without locks only costs the protection: a warning.
  FileLock(const std::filesystem::path& path, const std::string& what, const std::string& hint);
  FileLock(FileLock&& other) noexcept;
  FileLock& operator=(FileLock&& other) noexcept;
  ~FileLock();

 private:
  int descriptor_ = -1;
};

}  // namespace dalle

// One walk over a tar file, compressed or not, that survives a file that ends too early.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

namespace dalle::data {

struct TarEntry {
  std::string name;
  int64_t size = 0;     // bytes, as the header says
  int64_t offset = -1;  // of the content in the file; -1 where only `content` has it (compressed or sparse)
  int64_t missing = 0;  // bytes of the content past the end of the file; the rest of the entry is not to be used
  std::string content;  // where it was asked for, or offset is -1
};

struct TarWalk {
  bool compressed = false;
  int64_t num_entries = 0;  // regular files, the cut one included
  std::string problem;      // why the walk ended before the end-of-archive marker; "" for a whole file
};

/// Visits the regular files of `path` in order. `wants_content(name)`: read the content now. Throws FileError where the
/// file cannot be read; damage ends the walk and is told in the result.
TarWalk walk_tar(const std::filesystem::path& path, const std::function<bool(std::string_view)>& wants_content,
                 const std::function<void(TarEntry&&)>& visit);

/// `size` bytes at `offset`. Throws FileError where they cannot be read.
std::string read_range(const std::filesystem::path& path, int64_t offset, int64_t size);

}  // namespace dalle::data

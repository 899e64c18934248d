// A scratch directory of one test, removed with it.
#pragma once

#include <unistd.h>

#include <filesystem>
#include <string>

namespace dalle::testing {

class TempDirectory {
 public:
  explicit TempDirectory(const std::string& name)
      : path_(std::filesystem::temp_directory_path() / ("dalle-" + name + "-" + std::to_string(::getpid()))) {
    std::filesystem::remove_all(path_);
    std::filesystem::create_directories(path_);
  }
  ~TempDirectory() { std::filesystem::remove_all(path_); }
  TempDirectory(const TempDirectory&) = delete;
  TempDirectory& operator=(const TempDirectory&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

}  // namespace dalle::testing

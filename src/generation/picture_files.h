// Private to the commands on pictures that people bring: the files they name, and the folder they write.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "dalle/core/tensor.h"
#include "dalle/data/resize.h"

namespace dalle::generation {

/// Throws ConfigError where there is none, or one is missing, a folder or a device.
void check_picture_files(const std::string& command, const std::vector<std::filesystem::path>& files);

/// Throws ConfigError where `file` is missing, a folder or a device; a pipe will do. `flag` names it in the message.
void check_input_file(const std::string& flag, const std::filesystem::path& file);

/// Throws ConfigError where `file` could not be written (its folder is missing or not writable, or it is a folder itself), or is a
/// picture that is there already.
void check_output_file(const std::string& flag, const std::filesystem::path& file);

/// u8 [H, W, 3]. Throws DataError naming the file.
Tensor read_picture(const std::filesystem::path& path);

/// u8 [3, size, size]: shorter side, which must have `size` pixels, to `size`, centre crop. Throws DataError naming the file.
Tensor load_picture(const std::filesystem::path& path, int64_t size, data::ResizeFilter filter);

/// Throws ConfigError where `out` is a file or holds anything.
void check_output_folder(const std::filesystem::path& out);

/// A folder of results that gets all of them or none: they are written into a hidden folder inside and moved by
/// commit(). Without commit(), everything is removed, and `out` itself where it was not there before.
class OutputFolder {
 public:
  /// Throws FileError where the folder cannot be made.
  explicit OutputFolder(std::filesystem::path out);
  ~OutputFolder();
  OutputFolder(const OutputFolder&) = delete;
  OutputFolder& operator=(const OutputFolder&) = delete;

  std::filesystem::path operator/(const std::string& name) const { return hidden_ / name; }
  void commit();

 private:
  std::filesystem::path out_;
  std::filesystem::path hidden_;
  bool was_there_ = false;
};

}  // namespace dalle::generation

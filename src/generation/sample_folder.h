// Private to sample-and-rerank: the folder of a run, which an interrupted run goes on in.
#pragma once

#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "dalle/core/file_lock.h"

namespace dalle::generation {

/// What makes two runs the same: settings, captions and identities of models, as texts under their names.
using RunDescription = std::vector<std::pair<std::string, std::string>>;

class SampleFolder {
 public:
  /// Whether `out` can be started in or may be gone on in: it is not there, empty, or an unfinished run's. Throws ConfigError
  /// else. Costs nothing: to be asked before models are loaded.
  static void check(const std::filesystem::path& out);

  /// Makes the folder and writes what the run is into unfinished.json; or, where that is there, compares. Throws ConfigError
  /// that names what differs from the unfinished run, or the process that draws into it, FileError where the folder cannot be written.
  SampleFolder(std::filesystem::path out, const RunDescription& run);

  /// Of a folder that the first of several ranks has made. Throws FileError where this rank does not see it.
  static SampleFolder of_first_rank(std::filesystem::path out);

  /// Whether an interrupted run left something.
  bool goes_on() const { return goes_on_; }
  std::filesystem::path operator/(const std::string& name) const { return out_ / name; }
  const std::filesystem::path& path() const { return out_; }

  /// All results are written: removes unfinished.json.
  void finish();

 private:
  SampleFolder() = default;
  std::filesystem::path out_;
  FileLock lock_;
  bool goes_on_ = false;
};

}  // namespace dalle::generation

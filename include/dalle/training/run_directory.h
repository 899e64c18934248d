// The folder of one training run: what it holds and who may write into it. docs/run_directory.md lists its files.
// A directory in use is locked (flock on .lock), so the kernel frees it however the process ends.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>

#include "dalle/core/file_lock.h"

namespace dalle::training {

/// The folders a new run directory starts with: a training's samples/, tensorboard/ and checkpoints/, or none.
enum class RunFolders { kTraining, kNone };

class RunDirectory {
 public:
  /// runs/NAME-YYYYmmdd-HHMMSS (local time) under the working directory; with "-2", "-3" ... where that exists already.
  static std::filesystem::path default_path(const std::string& name);

  /// Makes the directory and writes config.yaml. Throws ConfigError where `root` holds anything already or another
  /// process is in it, FileError where it cannot be made.
  static RunDirectory create(const std::filesystem::path& root, const std::string& config_yaml,
                             RunFolders folders = RunFolders::kTraining);

  /// An existing run, to be resumed. Throws ConfigError where there is none or another process is in it.
  static RunDirectory open(const std::filesystem::path& root, RunFolders folders = RunFolders::kTraining);

  /// The directory that rank 0 has made or opened, for ranks that only read in it: no lock.
  static RunDirectory of_first_rank(const std::filesystem::path& root) { return RunDirectory(root, FileLock()); }

  const std::filesystem::path& root() const { return root_; }
  std::filesystem::path config_file() const { return root_ / "config.yaml"; }
  std::filesystem::path metrics_file() const { return root_ / "metrics.jsonl"; }
  std::filesystem::path exponents_file() const { return root_ / "exponents.jsonl"; }
  std::filesystem::path log_file() const { return root_ / "log.txt"; }
  std::filesystem::path samples() const { return root_ / "samples"; }
  std::filesystem::path tensorboard() const { return root_ / "tensorboard"; }
  std::filesystem::path checkpoints() const { return root_ / "checkpoints"; }
  /// checkpoints/step-XXXXXXXX
  std::filesystem::path checkpoint(int64_t step) const;
  /// samples/NAME-XXXXXXXX.png
  std::filesystem::path sample_file(const std::string& name, int64_t step) const;

  /// Writes config.yaml anew where a resumed run has changed keys that may change, so that the next resume keeps them.
  void update_config(const std::string& config_yaml) const;
  /// Forgets the metrics and exponents of steps after `step`, which a resumed run will log again.
  void cut_metrics_after(int64_t step) const;

 private:
  RunDirectory(std::filesystem::path root, FileLock lock) : root_(std::move(root)), lock_(std::move(lock)) {}
  void make_folders() const;

  std::filesystem::path root_;
  FileLock lock_;
};

}  // namespace dalle::training

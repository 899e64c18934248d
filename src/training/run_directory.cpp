#include "dalle/training/run_directory.h"

#include <cstdio>
#include <cstring>
#include <ctime>
#include <utility>

#include "dalle/core/error.h"
#include "dalle/core/file_lock.h"
#include "dalle/core/files.h"
#include "dalle/core/logging.h"
#include "dalle/core/str.h"
#include "dalle/storage/run_checkpoints.h"
#include "dalle/training/metrics.h"

namespace dalle::training {
namespace {

namespace fs = std::filesystem;

constexpr const char* kLockName = ".lock";

void make_directory(const fs::path& path) {
  std::error_code error;
  fs::create_directories(path, error);
  if (error) throw FileError(Problem{"cannot create directory " + path.string(), "", error.message(), ""});
}

// A name in `root`, or "" where there is none but the lock file's and what a process left that was killed while it wrote
// the config.
std::string first_entry(const fs::path& root) {
  for (const auto& entry : fs::directory_iterator(root)) {
    const std::string name = entry.path().filename().string();
    if (name != kLockName && !name.starts_with("config.yaml.tmp-")) return name;
  }
  return "";
}

void refuse_used_directory(const fs::path& root) {
  if (!fs::exists(root)) return;
  if (!fs::is_directory(root)) throw ConfigError(Problem{"--run-dir " + root.string(), "a directory", "a file", ""});
  const std::string entry = first_entry(root);
  if (entry.empty()) return;
  throw ConfigError(Problem{"run directory " + root.string(), "a new or empty directory", "one that holds " + entry,
                            "continue that run with --resume, or name another directory with --run-dir"});
}

FileLock lock_of(const fs::path& root) {
  return {root / kLockName, "run directory " + root.string(),
          "wait for that process, stop it, or name another --run-dir"};
}

}  // namespace

fs::path RunDirectory::default_path(const std::string& name) {
  const std::time_t now = std::time(nullptr);
  std::tm parts{};
  localtime_r(&now, &parts);
  char stamp[32];
  std::strftime(stamp, sizeof stamp, "%Y%m%d-%H%M%S", &parts);
  const fs::path first = fs::path("runs") / str(name, "-", stamp);
  fs::path path = first;
  for (int copy = 2; fs::exists(path); ++copy) path = str(first.string(), "-", copy);
  return path;
}

RunDirectory RunDirectory::create(const fs::path& root, const std::string& config_yaml, RunFolders folders) {
  refuse_used_directory(root);
  make_directory(root);
  RunDirectory run(root, lock_of(root));
  refuse_used_directory(root);  // another process may have been here before the lock
  write_file(run.config_file(), config_yaml);
  if (folders == RunFolders::kTraining) run.make_folders();
  return run;
}

RunDirectory RunDirectory::open(const fs::path& root, RunFolders folders) {
  if (!fs::is_regular_file(root / "config.yaml")) {
    throw ConfigError(Problem{"--resume: " + root.string(), "a run directory, with a config.yaml in it",
                              fs::exists(root) ? "no config.yaml" : "no such directory",
                              "name the directory of the run to be continued with --run-dir"});
  }
  RunDirectory run(root, lock_of(root));
  if (folders == RunFolders::kTraining) run.make_folders();
  return run;
}

void RunDirectory::make_folders() const {
  for (const fs::path& folder : {samples(), tensorboard(), checkpoints()}) make_directory(folder);
}

fs::path RunDirectory::checkpoint(int64_t step) const { return storage::checkpoint_path(root_, step); }

fs::path RunDirectory::sample_file(const std::string& name, int64_t step) const {
  char number[24];
  std::snprintf(number, sizeof number, "%08lld", static_cast<long long>(step));
  return samples() / str(name, "-", number, ".png");
}

void RunDirectory::update_config(const std::string& config_yaml) const {
  if (read_file(config_file()) != config_yaml) write_file(config_file(), config_yaml);
}

void RunDirectory::cut_metrics_after(int64_t step) const {
  for (const auto& file : {metrics_file(), exponents_file()}) training::cut_metrics_after(file, step);
}

}  // namespace dalle::training

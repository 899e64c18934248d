// The checkpoints of a run directory: RUN/checkpoints/step-XXXXXXXX and the symbolic link RUN/checkpoints/latest.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "dalle/storage/checkpoint.h"

namespace dalle::storage {

/// "step-00000100"
std::string checkpoint_name(int64_t step);

/// RUN/checkpoints/step-XXXXXXXX
std::filesystem::path checkpoint_path(const std::filesystem::path& run_dir, int64_t step);

/// Names of the run's checkpoint folders, whole or not, by rising step.
std::vector<std::string> list_checkpoints(const std::filesystem::path& run_dir);

/// The checkpoint a user means by `given`: a checkpoint folder, a run directory (its checkpoints/latest) or one
/// .safetensors file. Throws ConfigError saying what was looked for where there is none. Opens nothing.
std::filesystem::path resolve_checkpoint(const std::filesystem::path& given);

/// Points checkpoints/latest at checkpoint `name`, in one step (a new link is renamed over the old). Throws FileError.
void update_latest(const std::filesystem::path& run_dir, const std::string& name);

/// Makes checkpoint `name` the run's last: `latest` points at it, later ones are renamed to left-NAME (left-NAME.2, ... where
/// that is taken), which nothing reads or removes any more. Returns the new names. Throws FileError.
std::vector<std::string> leave_later_checkpoints(const std::filesystem::path& run_dir, const std::string& name);

/// Removes all checkpoints but the `keep_last` newest, those named in `keep`, and the one `latest` points at; also
/// temporary folders that dead processes left. keep_last < 1 keeps every checkpoint. Returns the names removed.
std::vector<std::string> prune_checkpoints(const std::filesystem::path& run_dir, int64_t keep_last,
                                           const std::vector<std::string>& keep = {});

struct LoadedCheckpoint {
  std::filesystem::path folder;
  Checkpoint checkpoint;
};

/// The checkpoint that `latest` points at; where it is damaged or missing, the newest intact one, with a warning for
/// each that was passed over. Throws ConfigError where the run has no checkpoint and CheckpointError where none is intact.
LoadedCheckpoint load_latest_good(const std::filesystem::path& run_dir, LoadParts parts = LoadParts::kAll);

/// Its folder alone, after all of its files have been verified.
std::filesystem::path latest_good_folder(const std::filesystem::path& run_dir);

}  // namespace dalle::storage

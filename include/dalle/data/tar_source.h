// WebDataset tar shards, read through libarchive (docs/data_formats.md). Opening walks every shard once: captions are
// kept, pictures of uncompressed shards are found by offset and read when asked for; compressed shards stay in memory.
#pragma once

#include <filesystem>
#include <memory>
#include <vector>

#include "dalle/data/source.h"

namespace dalle::data {

/// `max_samples`: 0 = all. Throws DataError where no sample is usable, FileError where a shard cannot be read.
std::unique_ptr<Source> open_tar_source(const std::vector<std::filesystem::path>& shards, int64_t max_samples);

}  // namespace dalle::data

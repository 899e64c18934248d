// Private to encode-images: the shards that an earlier process of the run left.
#pragma once

#include <filesystem>
#include <optional>

#include "dalle/data/crop_loader.h"
#include "dalle/storage/token_shard.h"

namespace dalle::training {

/// Removes what a killed process was writing. The caller holds the run directory's lock, so that it is gone for sure.
void remove_unfinished_files(const std::filesystem::path& folder);

/// The shard where it is there and whole, checksum included. One that is damaged is told in the log.
std::optional<storage::TokenShardReader> open_whole_shard(const std::filesystem::path& path);

/// Throws ConfigError where a whole shard is not the one that the run would make over these samples.
void check_same_run(const storage::TokenShardReader& shard, const storage::TokenShardInfo& info,
                    const data::IndexRange& range, const data::Dataset& dataset);

}  // namespace dalle::training

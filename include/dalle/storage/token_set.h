// A folder of token shards that one run of encode-images made. MANIFEST.json is written last: a folder without one is
// not whole. It repeats each shard's checksum, so that a shard of another run is noticed without reading it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "dalle/storage/token_shard.h"

namespace dalle::storage {

inline constexpr const char* kTokenSetFormat = "dalle-tokens";

/// "tokens-000012.shard"
std::string token_shard_name(int64_t number);

struct TokenSetEntry {
  std::string name;  // a plain file name
  uint64_t bytes = 0;
  int64_t num_samples = 0;
  std::string checksum;  // as in the shard
};

struct TokenSet {
  std::string dvae;  // identity
  std::string dvae_path;
  int64_t dvae_step = 0;
  int64_t dataset_size = 0;
  int64_t num_samples = 0;
  int64_t num_captions = 0;
  int64_t num_crops = 0;
  std::vector<TokenSetEntry> shards;  // in order; every sample of the data set belongs to one
};

/// The manifest of these shards, whose headers must follow each other. Writes nothing.
TokenSet describe_token_set(const std::vector<TokenShardHeader>& shards, const std::string& dvae_path,
                            int64_t dvae_step);

/// Writes FOLDER/MANIFEST.json. Throws FileError.
void write_token_set(const std::filesystem::path& folder, const TokenSet& set);

/// Reads the manifest. Throws ConfigError where the folder has none and CheckpointError where it is damaged or of
/// another format or version.
TokenSet read_token_set(const std::filesystem::path& folder);

/// The folder with the shards that a user means by `given`: it, or its shards/. Throws ConfigError.
std::filesystem::path resolve_token_set(const std::filesystem::path& given);

}  // namespace dalle::storage

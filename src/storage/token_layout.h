// Private to token shards: where the sections of a shard lie, and its JSON header.
#pragma once

#include <cstdint>
#include <string>

#include "dalle/storage/token_shard.h"

namespace dalle::storage {

inline constexpr char kTokenMagic[] = "DALLETOK";  // 8 bytes
inline constexpr uint64_t kTokenPrefixBytes = 32;  // magic, length of the JSON header, checksum
inline constexpr uint64_t kTokenAlignment = 64;    // of the first section: a cache line
inline constexpr uint64_t kMaxTokenHeaderBytes = 1 << 20;
inline constexpr int64_t kMaxSampleCaptions = 1 << 20;
inline constexpr uint64_t kMaxSampleTextBytes = uint64_t{1} << 30;  // key and captions of one sample

/// Throws CheckpointError, with `place` in it, where the header's counts are out of range or their bytes exceed 2^62.
TokenLayout token_layout(const TokenShardHeader& header, const std::string& place);

/// JSON of everything but checksum and file_bytes, padded so that the first section is aligned.
std::string token_header_text(const TokenShardHeader& header, const std::string& place);

/// The reverse. Throws CheckpointError.
TokenShardHeader parse_token_header(const std::string& text, const std::string& place);

}  // namespace dalle::storage

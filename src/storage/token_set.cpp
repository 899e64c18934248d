#include "dalle/storage/token_set.h"

#include <c10/util/Exception.h>

#include <cstdio>

#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/core/str.h"
#include "dalle/storage/manifest.h"
#include "json.h"

namespace dalle::storage {
namespace {

[[noreturn]] void fail_set(const std::string& place, const std::string& expected, const std::string& got) {
  throw CheckpointError(Problem{
      .place = place, .expected = expected, .got = got, .hint = "the folder's manifest is damaged; copy it again"});
}

int64_t require_count(const Json& json, const char* name, const std::string& place) {
  const int64_t value = require_integer(json, name, place);
  if (value < 0) fail_set(place, str(name, " >= 0"), str(value));
  return value;
}

TokenSetEntry parse_entry(const Json& json, const std::string& place) {
  TokenSetEntry entry{.name = require_string(json, "name", place),
                      .bytes = static_cast<uint64_t>(require_count(json, "bytes", place)),
                      .num_samples = require_count(json, "num_samples", place),
                      .checksum = require_string(json, "xxh3_128", place)};
  const bool is_plain = !entry.name.empty() && entry.name[0] != '.' && entry.name.find('/') == std::string::npos &&
                        entry.name.find('\0') == std::string::npos;
  if (!is_plain) fail_set(place, "plain file names", "'" + entry.name + "'");
  return entry;
}

}  // namespace

std::string token_shard_name(int64_t number) {
  char name[40];
  std::snprintf(name, sizeof name, "tokens-%06lld.shard", static_cast<long long>(number));
  return name;
}

TokenSet describe_token_set(const std::vector<TokenShardHeader>& shards, const std::string& dvae_path,
                            int64_t dvae_step) {
  TORCH_CHECK_VALUE(!shards.empty(), "[token set] no shards");
  const TokenShardInfo& info = shards.front().info;
  TokenSet set{.dvae = info.dvae,
               .dvae_path = dvae_path,
               .dvae_step = dvae_step,
               .dataset_size = info.dataset_size,
               .num_crops = info.num_crops};
  int64_t next = 0;
  for (const auto& shard : shards) {
    TORCH_CHECK_VALUE(shard.info == info && shard.first_index == next, "[token set] shards do not follow each other");
    next = shard.end_index;
    set.num_samples += shard.num_samples;
    set.num_captions += shard.num_captions;
    set.shards.push_back({token_shard_name(static_cast<int64_t>(set.shards.size())), shard.file_bytes,
                          shard.num_samples, shard.checksum});
  }
  TORCH_CHECK_VALUE(next == info.dataset_size, "[token set] shards end at ", next, " of ", info.dataset_size);
  return set;
}

void write_token_set(const std::filesystem::path& folder, const TokenSet& set) {
  Json shards = Json::array();
  for (const auto& entry : set.shards) {
    shards.push_back({{"name", entry.name},
                      {"bytes", entry.bytes},
                      {"num_samples", entry.num_samples},
                      {"xxh3_128", entry.checksum}});
  }
  const Json json = {{"format", kTokenSetFormat},
                     {"format_version", kTokenShardVersion},
                     {"dvae", {{"identity", set.dvae}, {"path", set.dvae_path}, {"step", set.dvae_step}}},
                     {"dataset_size", set.dataset_size},
                     {"num_samples", set.num_samples},
                     {"num_captions", set.num_captions},
                     {"num_crops", set.num_crops},
                     {"shards", shards}};
  const auto path = folder / kManifestName;
  write_file(path, dump_json(json, path.string(), 1) + "\n");
}

TokenSet read_token_set(const std::filesystem::path& folder) {
  const auto path = folder / kManifestName;
  const std::string place = path.string();
  std::error_code error;
  if (!std::filesystem::is_regular_file(path, error)) {
    throw ConfigError(Problem{.place = folder.string(),
                              .expected = str("a folder of token shards with a ", kManifestName),
                              .got = "none there",
                              .hint = "encode-images writes it last; continue an interrupted run with --resume"});
  }
  const Json json = parse_json(read_file(path), place);
  const std::string format = require_string(json, "format", place);
  if (format != kTokenSetFormat) fail_set(place, str("format '", kTokenSetFormat, "'"), "'" + format + "'");
  const int64_t version = require_integer(json, "format_version", place);
  if (version != kTokenShardVersion) fail_set(place, str("format version ", kTokenShardVersion), str(version));
  const Json& dvae = require_object(json, "dvae", place);
  TokenSet set{.dvae = require_string(dvae, "identity", place),
               .dvae_path = require_string(dvae, "path", place),
               .dvae_step = require_count(dvae, "step", place),
               .dataset_size = require_count(json, "dataset_size", place),
               .num_samples = require_count(json, "num_samples", place),
               .num_captions = require_count(json, "num_captions", place),
               .num_crops = require_count(json, "num_crops", place)};
  const Json& shards = require(json, "shards", place);
  if (!shards.is_array() || shards.empty()) fail_set(place, "a list of shards", "none");
  int64_t total = 0;
  for (const auto& entry : shards) {
    set.shards.push_back(parse_entry(entry, place));
    if (__builtin_add_overflow(total, set.shards.back().num_samples, &total)) total = -1;
  }
  if (total != set.num_samples) fail_set(place, str(set.num_samples, " samples in all shards"), str(total));
  return set;
}

std::filesystem::path resolve_token_set(const std::filesystem::path& given) {
  for (const auto& folder : {given, given / "shards"}) {
    std::error_code error;
    if (std::filesystem::is_regular_file(folder / kManifestName, error)) return folder;
  }
  throw ConfigError(
      Problem{.place = given.string(),
              .expected = "a finished run of encode-images, or its folder of token shards",
              .got = std::filesystem::exists(given) ? "no MANIFEST.json in it or in its shards/" : "no such folder",
              .hint = "continue an interrupted run with encode-images --run-dir RUN --resume"});
}

}  // namespace dalle::storage

#include "encode_shards.h"

#include "dalle/core/error.h"
#include "dalle/core/logging.h"
#include "dalle/core/str.h"

namespace dalle::training {

void remove_unfinished_files(const std::filesystem::path& folder) {
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    if (entry.path().filename().string().find(".tmp-") != std::string::npos) std::filesystem::remove(entry.path());
  }
}

std::optional<storage::TokenShardReader> open_whole_shard(const std::filesystem::path& path) {
  if (!std::filesystem::exists(path)) return std::nullopt;
  try {
    storage::TokenShardReader shard(path);
    shard.verify();
    return shard;
  } catch (const Error& error) {
    log_warning(str("made again: ", error.what()));
    return std::nullopt;
  }
}

void check_same_run(const storage::TokenShardReader& shard, const storage::TokenShardInfo& info,
                    const data::IndexRange& range, const data::Dataset& dataset) {
  const auto& header = shard.header();
  std::string difference = storage::first_difference(header.info, info);
  if (difference.empty() && (header.first_index != range.first || header.end_index != range.end)) {
    difference = str("samples ", header.first_index, " to ", header.end_index - 1, " of the data set");
  }
  // The data set's size is in the info; that it is the same data is judged by the first sample of each shard.
  if (difference.empty() && shard.size() > 0 && shard.captions(0) != dataset.captions(shard.index(0))) {
    difference = str("other captions of sample ", shard.index(0), ", ", shard.key(0));
  }
  if (difference.empty()) return;
  throw ConfigError(
      Problem{.place = shard.path().string(),
              .expected = "a shard of this run: the same dVAE, data and precision",
              .got = difference,
              .hint = "give the dVAE, data and precision that its shards were made with, or start a new run"});
}

}  // namespace dalle::training

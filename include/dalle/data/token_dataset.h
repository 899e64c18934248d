// What encode-images wrote, as a data set for the prior: samples with all captions and the image tokens of several
// crops, by random access.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "dalle/core/tensor.h"
#include "dalle/storage/token_set.h"

namespace dalle::data {

/// Which crop of a sample an epoch uses. Each run of num_crops epochs uses every crop once, in an order keyed by (seed,
/// sample, run): so training for up to num_crops epochs sees as many different crops as augmenting on line would show.
int64_t choose_crop(uint64_t seed, int64_t epoch, int64_t sample, int64_t num_crops);

/// May be read by many threads at once. Errors as storage::TokenShardReader's.
class TokenDataset {
 public:
  /// Each folder is a run of encode-images, or its shards/; several are read as one, in order. Opens every shard's
  /// header. Throws ConfigError where a folder is no finished token set or the sets do not fit together (another dVAE,
  /// grid, vocabulary, picture size or number of crops), CheckpointError where a shard is missing, damaged or not the
  /// manifest's.
  explicit TokenDataset(const std::vector<std::filesystem::path>& folders);

  int64_t size() const { return starts_.back(); }
  /// dVAE, sizes and crops of all sets; seed, dataset_size and settings are the first one's.
  const storage::TokenShardInfo& info() const { return shards_.front().header().info; }

  /// Codes of a crop, [grid_size * grid_size]: the argmax codes, row by row.
  void read_codes(int64_t sample, int64_t crop, std::span<int64_t> codes) const;
  /// The same as i64 [grid_size, grid_size].
  Tensor codes(int64_t sample, int64_t crop) const;
  std::vector<std::string> captions(int64_t sample) const;
  std::string key(int64_t sample) const;
  /// Index of the sample in the data set that was encoded.
  int64_t index(int64_t sample) const;
  /// For messages: the shard and the key.
  std::string place(int64_t sample) const;

  /// Throws ConfigError, naming both, where the tokens are not those of the dVAE with this identity.
  void check_dvae(const std::string& identity, const std::string& dvae_path) const;
  /// Reads and checks every shard whole.
  void verify() const;

 private:
  std::pair<const storage::TokenShardReader*, int64_t> locate(int64_t sample) const;

  std::vector<storage::TokenShardReader> shards_;
  std::vector<int64_t> starts_;  // first sample of each shard, then the size
};

}  // namespace dalle::data

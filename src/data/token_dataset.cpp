#include "dalle/data/token_dataset.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "dalle/core/error.h"
#include "dalle/core/random.h"
#include "dalle/core/str.h"

namespace dalle::data {
namespace {

void check_entry(const storage::TokenShardReader& shard, const storage::TokenSetEntry& entry,
                 const storage::TokenSet& set) {
  const auto& header = shard.header();
  const std::string got = header.checksum != entry.checksum         ? str("checksum ", header.checksum)
                          : header.file_bytes != entry.bytes        ? str(header.file_bytes, " bytes")
                          : header.num_samples != entry.num_samples ? str(header.num_samples, " samples")
                          : header.info.dvae != set.dvae            ? str("tokens of dVAE ", header.info.dvae)
                                                                    : "";
  if (got.empty()) return;
  throw CheckpointError(Problem{.place = shard.path().string(),
                                .expected = str("the shard that its manifest lists: ", entry.num_samples, " samples, ",
                                                entry.bytes, " bytes, checksum ", entry.checksum),
                                .got = got,
                                .hint = "it belongs to another run of encode-images; copy the whole folder again"});
}

/// Sets of other runs may differ in seed, settings and data, but not in what a token is.
void check_fits(const storage::TokenShardReader& shard, const storage::TokenShardReader& first) {
  auto expected = shard.header().info;
  const auto& info = first.header().info;
  expected.dvae = info.dvae;
  expected.picture_size = info.picture_size;
  expected.grid_size = info.grid_size;
  expected.vocab_size = info.vocab_size;
  expected.num_crops = info.num_crops;
  const std::string difference = storage::first_difference(shard.header().info, expected);
  if (difference.empty()) return;
  throw ConfigError(Problem{.place = shard.path().string(),
                            .expected = str("tokens like those of ", first.path().string()),
                            .got = difference,
                            .hint = "encode all data with the same dVAE and crops_per_image"});
}

}  // namespace

int64_t choose_crop(uint64_t seed, int64_t epoch, int64_t sample, int64_t num_crops) {
  TORCH_CHECK_VALUE(num_crops >= 1 && epoch >= 0 && sample >= 0, "[choose crop] epoch ", epoch, ", sample ", sample,
                    ", ", num_crops, " crops");
  if (num_crops == 1) return 0;
  const auto key =
      random_key(seed, Purpose::kShuffle, static_cast<uint64_t>(epoch / num_crops), static_cast<uint64_t>(sample));
  return permutation(key, num_crops)[static_cast<size_t>(epoch % num_crops)];
}

TokenDataset::TokenDataset(const std::vector<std::filesystem::path>& folders) : starts_{0} {
  if (folders.empty()) throw ConfigError(Problem{.place = "token sets", .expected = "at least one", .got = "none"});
  for (const auto& given : folders) {
    const auto folder = storage::resolve_token_set(given);
    const auto set = storage::read_token_set(folder);
    for (const auto& entry : set.shards) {
      shards_.emplace_back(folder / entry.name);
      check_entry(shards_.back(), entry, set);
      check_fits(shards_.back(), shards_.front());
      starts_.push_back(starts_.back() + shards_.back().size());
    }
  }
  if (size() == 0) throw DataError(Problem{.place = folders[0].string(), .expected = "samples", .got = "none"});
}

std::pair<const storage::TokenShardReader*, int64_t> TokenDataset::locate(int64_t sample) const {
  TORCH_CHECK_VALUE(sample >= 0 && sample < size(), "[token data set] sample ", sample, " is not in [0, ", size(), ")");
  const auto after = std::upper_bound(starts_.begin(), starts_.end(), sample);
  const auto shard = static_cast<size_t>(after - starts_.begin() - 1);
  return {&shards_[shard], sample - starts_[shard]};
}

void TokenDataset::read_codes(int64_t sample, int64_t crop, std::span<int64_t> codes) const {
  const auto [shard, inner] = locate(sample);
  shard->read_codes(inner, crop, codes);
}

Tensor TokenDataset::codes(int64_t sample, int64_t crop) const {
  const int64_t grid = info().grid_size;
  Tensor codes = at::empty({grid, grid}, at::kLong);
  read_codes(sample, crop, {codes.mutable_data_ptr<int64_t>(), static_cast<size_t>(grid * grid)});
  return codes;
}

std::vector<std::string> TokenDataset::captions(int64_t sample) const {
  const auto [shard, inner] = locate(sample);
  return shard->captions(inner);
}

std::string TokenDataset::key(int64_t sample) const {
  const auto [shard, inner] = locate(sample);
  return shard->key(inner);
}

int64_t TokenDataset::index(int64_t sample) const {
  const auto [shard, inner] = locate(sample);
  return shard->index(inner);
}

std::string TokenDataset::place(int64_t sample) const {
  const auto [shard, inner] = locate(sample);
  return str(shard->path().string(), ": ", shard->key(inner));
}

void TokenDataset::check_dvae(const std::string& identity, const std::string& dvae_path) const {
  if (identity == info().dvae) return;
  throw ConfigError(Problem{.place = dvae_path,
                            .expected = str("the dVAE whose tokens are in ",
                                            shards_.front().path().parent_path().string(), ", identity ", info().dvae),
                            .got = identity,
                            .hint = "give that dVAE, or encode the pictures with this one"});
}

void TokenDataset::verify() const {
  for (const auto& shard : shards_) shard.verify();
}

}  // namespace dalle::data

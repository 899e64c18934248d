// What the prior trains and is validated on: pictures that its frozen dVAE encodes as they come, or the token shards that
// encode-images made of them. Behind this, the two are read alike: same order, same captions, same batches.
#pragma once

#include <filesystem>
#include <memory>
#include <variant>
#include <vector>

#include "dalle/data/loader.h"
#include "dalle/data/token_dataset.h"
#include "dalle/training/config.h"

namespace dalle::training {

class PriorSource {
 public:
  /// Opens `tokens` where there are any, else `sources`. Throws as data::Dataset and data::TokenDataset.
  PriorSource(const std::vector<data::SourceConfig>& sources, const std::vector<std::filesystem::path>& tokens);

  int64_t size() const;
  /// As plan_of().
  std::string plan() const;
  /// What stored tokens are; null where the source holds pictures.
  const storage::TokenShardInfo* token_info() const;
  /// Throws ConfigError where stored tokens are not those of the dVAE with this identity.
  void check_dvae(const std::string& identity, const std::filesystem::path& dvae) const;

  /// Batches for training, with `images` or with `codes`. This must outlive them.
  std::unique_ptr<data::BatchStream> open(const data::DataConfig& config, data::LoaderOptions options) const;
  /// Samples first .. first + count - 1 in order, for evaluation: plain crops or crop 0, first caption.
  data::Batch range(const data::DataConfig& config, int64_t image_size, int64_t first, int64_t count,
                    data::RangeIs range = data::RangeIs::kNeeded) const;

 private:
  std::variant<std::unique_ptr<data::Dataset>, std::unique_ptr<data::TokenDataset>> data_;
};

/// The held-out data, or null where the config names none.
std::unique_ptr<PriorSource> open_prior_validation(const PriorValidation& config);

/// `model` with sizes that are 0 taken from where they are known: the tokenizer, and the dVAE or the stored tokens. Throws
/// ConfigError, naming the owner, where a size that is given differs.
models::PriorConfig with_known_sizes(models::PriorConfig model, int64_t pieces, int64_t grid_size, int64_t codes,
                                     const char* owner_of_codes);

}  // namespace dalle::training

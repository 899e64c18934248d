#include "dalle/training/prior_source.h"

#include "dalle/core/error.h"
#include "dalle/core/str.h"
#include "dalle/data/token_loader.h"
#include "dalle/training/task_support.h"

namespace dalle::training {
namespace {

using Pictures = std::unique_ptr<data::Dataset>;
using Tokens = std::unique_ptr<data::TokenDataset>;

void fill_size(const char* key, int64_t& value, int64_t wanted, const char* owner) {
  if (value == 0) value = wanted;
  if (value == wanted) return;
  throw ConfigError(Problem{str("model.", key), str(wanted, ", as ", owner, " has, or 0"), str(value), ""});
}

}  // namespace

PriorSource::PriorSource(const std::vector<data::SourceConfig>& sources,
                         const std::vector<std::filesystem::path>& tokens) {
  if (tokens.empty()) {
    data_ = std::make_unique<data::Dataset>(sources);
  } else {
    data_ = std::make_unique<data::TokenDataset>(tokens);
  }
}

int64_t PriorSource::size() const {
  return std::visit([](const auto& data) { return data->size(); }, data_);
}

std::string PriorSource::plan() const {
  return std::visit([](const auto& data) { return plan_of(*data); }, data_);
}

const storage::TokenShardInfo* PriorSource::token_info() const {
  const auto* tokens = std::get_if<Tokens>(&data_);
  return tokens == nullptr ? nullptr : &(*tokens)->info();
}

void PriorSource::check_dvae(const std::string& identity, const std::filesystem::path& dvae) const {
  if (const auto* tokens = std::get_if<Tokens>(&data_)) (*tokens)->check_dvae(identity, dvae.string());
}

std::unique_ptr<data::BatchStream> PriorSource::open(const data::DataConfig& config,
                                                     data::LoaderOptions options) const {
  if (const auto* tokens = std::get_if<Tokens>(&data_)) {
    return std::make_unique<data::TokenLoader>(**tokens, config, std::move(options));
  }
  return std::make_unique<data::Loader>(*std::get<Pictures>(data_), config, std::move(options));
}

data::Batch PriorSource::range(const data::DataConfig& config, int64_t image_size, int64_t first, int64_t count,
                               data::RangeIs range) const {
  if (const auto* tokens = std::get_if<Tokens>(&data_)) return data::load_token_range(**tokens, first, count);
  return data::load_range(*std::get<Pictures>(data_), config, image_size, first, count, {}, range);
}

std::unique_ptr<PriorSource> open_prior_validation(const PriorValidation& config) {
  if (config.sources.empty() && config.tokens.empty()) return nullptr;
  return std::make_unique<PriorSource>(config.sources, config.tokens);
}

models::PriorConfig with_known_sizes(models::PriorConfig model, int64_t pieces, int64_t grid_size, int64_t codes,
                                     const char* owner_of_codes) {
  fill_size("grid_size", model.grid_size, grid_size, owner_of_codes);
  fill_size("image_vocab_size", model.image_vocab_size, codes, owner_of_codes);
  fill_size("text_vocab_size", model.text_vocab_size, pieces, "the tokenizer");
  return model;
}

}  // namespace dalle::training

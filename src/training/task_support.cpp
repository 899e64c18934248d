#include "dalle/training/task_support.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cstdio>

#include "dalle/core/device.h"
#include "dalle/core/error.h"
#include "dalle/core/logging.h"
#include "dalle/core/str.h"
#include "dalle/text/tokenizer_report.h"

namespace dalle::training {

void freeze(layers::Module& module, const std::vector<std::string>& prefixes) {
  const auto parameters = module.named_parameters();
  for (const auto& prefix : prefixes) {
    const auto begins = [&prefix](const auto& entry) { return entry.name.starts_with(prefix); };
    if (std::any_of(parameters.begin(), parameters.end(), begins)) continue;
    throw ConfigError(Problem{"trainer.freeze", "the beginning of a parameter's name", "'" + prefix + "'",
                              "names start with, for example, '" + parameters.front().name + "'"});
  }
  if (prefixes.empty()) return;
  module.set_requires_grad(false, prefixes);
  const auto is_trained = [](const auto& entry) { return entry.parameter->tensor.requires_grad(); };
  if (std::none_of(parameters.begin(), parameters.end(), is_trained)) {
    throw ConfigError(Problem{"trainer.freeze", "a parameter that is left to train", "all of them frozen", ""});
  }
}

std::unique_ptr<data::Dataset> open_validation(const ValidationConfig& config) {
  return config.sources.empty() ? nullptr : std::make_unique<data::Dataset>(config.sources);
}

int64_t validation_size(const data::Dataset& validation, const ValidationConfig& config) {
  return config.max_samples > 0 ? std::min(config.max_samples, validation.size()) : validation.size();
}

data::LoaderOptions loader_options(const TrainerConfig& trainer, int64_t image_size, int64_t micro_batch_size,
                                   int64_t start_position, const distributed::Communicator& ranks) {
  data::LoaderOptions options;
  options.rank = ranks.rank();
  options.world_size = ranks.world_size();
  options.batch_size = micro_batch_size * options.world_size;
  options.image_size = image_size;
  options.seed = static_cast<uint64_t>(trainer.seed);
  options.start_position = start_position;
  return options;
}

std::vector<SampleRange> own_batches(int64_t count, int64_t batch_size, const distributed::Communicator& ranks) {
  std::vector<SampleRange> batches;
  for (int64_t round = 0; round < count; round += ranks.world_size() * batch_size) {
    const int64_t first = round + ranks.rank() * batch_size;
    batches.push_back({first, std::clamp<int64_t>(count - first, 0, batch_size)});
  }
  return batches;
}

void sum_over_ranks(std::initializer_list<double*> numbers, distributed::Communicator& ranks) {
  if (ranks.world_size() == 1) return;
  Tensor sums = at::empty({static_cast<int64_t>(numbers.size())}, at::kDouble);
  double* values = sums.mutable_data_ptr<double>();
  std::transform(numbers.begin(), numbers.end(), values, [](const double* number) { return *number; });
  ranks.all_reduce_sum(sums);
  for (double* number : numbers) *number = *values++;
}

RandomKey bpe_dropout_key(const TrainerConfig& trainer, const data::SampleVisit& visit) {
  return random_key(static_cast<uint64_t>(trainer.seed), Purpose::kBpeDropout, static_cast<uint64_t>(visit.sample),
                    static_cast<uint64_t>(visit.epoch));
}

Tensor to_unit_range(const Tensor& u8, at::Device device) { return to_device(u8, device).to(at::kFloat).div_(255); }

Sheet captioned_sheet(const std::string& name, const PreparedBatch& batch, const std::string& title,
                      const std::function<std::string(size_t)>& label) {
  std::vector<generation::SheetCell> cells;
  const int64_t count = std::min<int64_t>(16, batch.pixels.size(0));
  for (int64_t i = 0; i < count; ++i) {
    const auto index = static_cast<size_t>(i);
    const std::string& caption = batch.batch.captions.at(index);
    cells.push_back({.picture = batch.pixels[i], .label = label ? label(index) : caption});
  }
  return {name, generation::contact_sheet(cells, {.title = title})};
}

std::string shown_pieces(const text::TextTokenizer& tokenizer, const Tensor& ids) {
  const Tensor row = ids.to(at::kCPU).contiguous();
  return text::shown_pieces(tokenizer, {row.const_data_ptr<int64_t>(), static_cast<size_t>(row.numel())});
}

std::string short_number(double value) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g", value);
  return text;
}

std::filesystem::path tokenizer_file(const std::filesystem::path& given) {
  if (given.empty()) {
    throw ConfigError(Problem{"tokenizer", "a tokenizer.model or the run directory of train-tokenizer", "nothing", ""});
  }
  if (std::filesystem::is_regular_file(given)) return given;
  if (std::filesystem::is_regular_file(given / "tokenizer.model")) return given / "tokenizer.model";
  throw ConfigError(Problem{"tokenizer: " + given.string(), "a tokenizer.model or a folder with one", "nothing there",
                            "make one with train-tokenizer"});
}

void note_missing(const std::string& key, const std::filesystem::path& path) {
  if (!path.empty() && !std::filesystem::exists(path))
    log_info(str("note: ", key, ": ", path.string(), " is not there yet"));
}

void note_missing_sources(const data::DataConfig& config) {
  for (size_t i = 0; i < config.sources.size(); ++i) {
    const auto& path = config.sources[i].path;
    if (path.string().find_first_of("{*?[") == std::string::npos) note_missing(str("data.sources[", i, "].path"), path);
  }
}

}  // namespace dalle::training

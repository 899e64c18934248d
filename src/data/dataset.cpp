#include "dalle/data/dataset.h"

#include <c10/util/Exception.h>

#include <algorithm>

#include "dalle/core/error.h"

namespace dalle::data {
namespace {

std::vector<std::unique_ptr<Source>> open_all(const std::vector<SourceConfig>& configs) {
  std::vector<std::unique_ptr<Source>> sources;
  for (const auto& config : configs) sources.push_back(open_source(config));
  return sources;
}

}  // namespace

Dataset::Dataset(const std::vector<SourceConfig>& sources) : Dataset(open_all(sources)) {}

Dataset::Dataset(std::vector<std::unique_ptr<Source>> sources) : sources_(std::move(sources)), starts_{0} {
  if (sources_.empty()) throw ConfigError(Problem{.place = "data.sources", .expected = "at least one", .got = "none"});
  for (const auto& source : sources_) starts_.push_back(starts_.back() + source->size());
}

std::pair<const Source*, int64_t> Dataset::locate(int64_t index) const {
  TORCH_CHECK_VALUE(index >= 0 && index < size(), "[dataset] index ", index, " is not in [0, ", size(), ")");
  const auto after = std::upper_bound(starts_.begin(), starts_.end(), index);
  const auto source = static_cast<size_t>(after - starts_.begin() - 1);
  return {sources_[source].get(), index - starts_[source]};
}

RawSample Dataset::read(int64_t index) const {
  const auto [source, inner] = locate(index);
  return source->read(inner);
}

const std::vector<std::string>& Dataset::captions(int64_t index) const {
  const auto [source, inner] = locate(index);
  return source->captions(inner);
}

std::string Dataset::place(int64_t index) const {
  const auto [source, inner] = locate(index);
  return source->place(inner);
}

std::vector<std::string> Dataset::all_captions() const {
  std::vector<std::string> all;
  for (int64_t i = 0; i < size(); ++i) all.insert(all.end(), captions(i).begin(), captions(i).end());
  return all;
}

}  // namespace dalle::data

// All sources of a config as one indexed list.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "dalle/data/source.h"

namespace dalle::data {

class Dataset {
 public:
  /// Opens every source. Throws as open_source, and ConfigError where there is none.
  explicit Dataset(const std::vector<SourceConfig>& sources);
  explicit Dataset(std::vector<std::unique_ptr<Source>> sources);

  int64_t size() const { return starts_.back(); }
  /// Thread-safe, as are all others. Index in [0, size()).
  RawSample read(int64_t index) const;
  const std::vector<std::string>& captions(int64_t index) const;
  std::string place(int64_t index) const;
  /// Every caption of every sample, in order.
  std::vector<std::string> all_captions() const;
  const std::vector<std::unique_ptr<Source>>& sources() const { return sources_; }

 private:
  /// The source that holds an index, and the index within it.
  std::pair<const Source*, int64_t> locate(int64_t index) const;

  std::vector<std::unique_ptr<Source>> sources_;
  std::vector<int64_t> starts_;  // first index of each source, then the size
};

}  // namespace dalle::data

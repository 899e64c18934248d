// A data source in memory, with pictures that say their index and captions that say it too.
#pragma once

#include <ATen/ATen.h>

#include <atomic>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "dalle/core/error.h"
#include "dalle/core/str.h"
#include "dalle/data/dataset.h"
#include "dalle/data/image_codec.h"

namespace dalle::testing {

/// Pictures made in memory; those named in `bad` are no pictures.
class MemorySource : public data::Source {
 public:
  MemorySource(int64_t size, std::set<int64_t> bad = {}, int64_t picture_size = 20) : bad_(std::move(bad)) {
    for (int64_t i = 0; i < size; ++i) {
      at::Tensor image = at::full({picture_size, picture_size, 3}, i % 256, at::kByte);
      image.select(1, 0).fill_(255);  // tells left from right
      pictures_.push_back(data::encode_png(image));
      captions_.push_back({str("caption ", i), str("second ", i), str("third ", i)});
    }
  }
  int64_t size() const override { return static_cast<int64_t>(pictures_.size()); }
  data::RawSample read(int64_t index) const override {
    if (index == throwing) throw FileError("disk on fire");
    ++num_reads;
    const auto i = static_cast<size_t>(index);
    return {str("key", index), bad_.contains(index) ? "no picture" : pictures_[i], captions_[i]};
  }
  const std::vector<std::string>& captions(int64_t index) const override {
    return captions_[static_cast<size_t>(index)];
  }
  std::string place(int64_t index) const override { return str("memory: key", index); }
  std::string name() const override { return "memory"; }
  const data::SourceReport& report() const override { return report_; }

  int64_t throwing = -1;
  mutable std::atomic<int64_t> num_reads = 0;

 private:
  std::set<int64_t> bad_;
  std::vector<std::string> pictures_;
  std::vector<std::vector<std::string>> captions_;
  data::SourceReport report_;
};

inline data::Dataset dataset_of(std::unique_ptr<data::Source> source) {
  std::vector<std::unique_ptr<data::Source>> sources;
  sources.push_back(std::move(source));
  return data::Dataset(std::move(sources));
}

inline data::Dataset memory_dataset(int64_t size, std::set<int64_t> bad = {}) {
  return dataset_of(std::make_unique<MemorySource>(size, std::move(bad)));
}

}  // namespace dalle::testing

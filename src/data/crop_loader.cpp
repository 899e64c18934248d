#include "dalle/data/crop_loader.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "dalle/core/error.h"
#include "dalle/core/random.h"
#include "dalle/core/str.h"

namespace dalle::data {
namespace {

std::vector<int64_t> first_batches(const std::vector<IndexRange>& ranges, int64_t samples_per_batch) {
  std::vector<int64_t> firsts{0};
  for (const auto& range : ranges) {
    firsts.push_back(firsts.back() + (range.end - range.first + samples_per_batch - 1) / samples_per_batch);
  }
  return firsts;
}

}  // namespace

CropLoader::CropLoader(const Dataset& dataset, const DataConfig& config, CropLoaderOptions options,
                       std::vector<IndexRange> ranges)
    : dataset_(dataset),
      options_(options),
      transform_(transform_options(config, options.image_size)),
      background_(parse_background(config.background)),
      ranges_(std::move(ranges)),
      first_batch_(first_batches(ranges_, options_.samples_per_batch)),
      batches_(config.loader_threads, config.prefetch_batches, first_batch_.back(),
               [this](int64_t number) { return make(number); }) {}

IndexRange CropLoader::range_of(int64_t number) const {
  const auto after = std::upper_bound(first_batch_.begin(), first_batch_.end(), number);
  const auto which = static_cast<size_t>(after - first_batch_.begin() - 1);
  const IndexRange& range = ranges_[which];
  const int64_t first = range.first + (number - first_batch_[which]) * options_.samples_per_batch;
  return {first, std::min(range.end, first + options_.samples_per_batch)};
}

CropBatch CropLoader::make(int64_t number) const {
  CropBatch batch;
  batch.range = range_of(number);
  std::vector<Tensor> crops;
  for (int64_t index = batch.range.first; index < batch.range.end; ++index) {
    try {
      RawSample raw = dataset_.read(index);
      crops.push_back(
          make_crops(decode_picture(raw.picture, background_), transform_, options_.seed, index, options_.num_crops));
      batch.indices.push_back(index);
      batch.keys.push_back(std::move(raw.key));
      batch.captions.push_back(std::move(raw.captions));
    } catch (const DataError& error) {
      batch.bad.push_back({index, str(dataset_.place(index), ": ", error.what())});
    }
  }
  if (!crops.empty()) batch.images = at::cat(crops);
  return batch;
}

Tensor make_crops(const Tensor& image_HW3, const TransformOptions& transform, uint64_t seed, int64_t index,
                  int64_t num_crops) {
  std::vector<Tensor> crops;
  for (int64_t crop = 0; crop < num_crops; ++crop) {
    const auto key = random_key(seed, Purpose::kAugment, static_cast<uint64_t>(index), static_cast<uint64_t>(crop));
    crops.push_back(transform_picture(image_HW3, transform, key));
  }
  return at::stack(crops);
}

}  // namespace dalle::data

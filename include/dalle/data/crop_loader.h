// Every usable sample of a data set once, in its order, each as several augmented crops: what encode-images encodes.
// Crop c of sample i is a function of (seed, i, c) alone, so it depends neither on threads nor on where a run resumed.
//
// Shapes: n samples of a batch, C crops of each, S picture size.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "dalle/core/tensor.h"
#include "dalle/data/bad_samples.h"
#include "dalle/data/data_config.h"
#include "dalle/data/dataset.h"
#include "dalle/data/prefetcher.h"

namespace dalle::data {

/// Samples first .. end - 1 of a data set.
struct IndexRange {
  int64_t first = 0;
  int64_t end = 0;
};

struct CropBatch {
  Tensor images;  // uint8 [n * C, 3, S, S], the crops of a sample together; undefined where n is 0
  std::vector<int64_t> indices;
  std::vector<std::string> keys;
  std::vector<std::vector<std::string>> captions;  // all of them
  IndexRange range;                                // samples looked at; those not in `indices` are bad
  std::vector<BadSample> bad;
};

struct CropLoaderOptions {
  int64_t image_size = 256;
  int64_t num_crops = 1;
  int64_t samples_per_batch = 1;
  uint64_t seed = 0;
};

class CropLoader {
 public:
  /// Goes through `ranges` in order; no batch holds samples of two of them. `dataset` must outlive the loader.
  CropLoader(const Dataset& dataset, const DataConfig& config, CropLoaderOptions options,
             std::vector<IndexRange> ranges);

  int64_t num_batches() const { return first_batch_.back(); }
  /// To be called num_batches() times. Unusable pictures are left out; the caller judges their number.
  CropBatch next() { return batches_.next(); }
  double seconds_waited() const { return batches_.seconds_waited(); }

 private:
  IndexRange range_of(int64_t number) const;
  CropBatch make(int64_t number) const;

  const Dataset& dataset_;
  CropLoaderOptions options_;
  TransformOptions transform_;
  Background background_;
  std::vector<IndexRange> ranges_;
  std::vector<int64_t> first_batch_;  // of each range, then their number
  Prefetcher<CropBatch> batches_;     // last: its threads use the rest
};

/// uint8 [C, 3, S, S]: the crops of sample `index`, from its decoded picture. Throws DataError where it is too small.
Tensor make_crops(const Tensor& image_HW3, const TransformOptions& transform, uint64_t seed, int64_t index,
                  int64_t num_crops);

}  // namespace dalle::data

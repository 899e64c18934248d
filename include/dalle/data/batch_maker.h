// Makes one batch from global positions. Stateless apart from the order's cache, so that threads can share it; the
// loader adds threads, order of delivery and the judgement on bad pictures.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "dalle/data/bad_samples.h"
#include "dalle/data/loader.h"
#include "dalle/data/sample_order.h"

namespace dalle::data {

struct MadeBatch {
  Batch batch;
  int64_t num_looked_at = 0;
  std::vector<BadSample> bad;
};

class BatchMaker {
 public:
  BatchMaker(const Dataset& dataset, const DataConfig& config, LoaderOptions options);

  /// Batch `number` counted from start_position. Throws DataError where no picture of it is usable, see Loader.
  MadeBatch make(int64_t number) const;

 private:
  struct Item {
    Tensor image_3SS;
    std::string key;
    std::string caption;
    int64_t index = 0;
  };
  std::optional<Item> try_sample(int64_t index, int64_t position, MadeBatch& made) const;
  Item replace(int64_t index, int64_t position, MadeBatch& made) const;

  const Dataset& dataset_;
  DataConfig config_;
  LoaderOptions options_;
  TransformOptions transform_;
  Background background_;
  SampleOrder order_;
};

/// Throws ConfigError unless batch_size is a multiple of world_size.
void check_batch_split(const LoaderOptions& options);

/// Sets batch.caption_ids, int64 [B, n], and batch.num_truncated. Throws TORCH_CHECK_VALUE's error where the numbers of ids
/// differ.
void set_captions(const std::vector<text::EncodedCaption>& captions, Batch& batch);

}  // namespace dalle::data

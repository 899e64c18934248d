// Batches of image tokens and captions from what encode-images wrote: the same interface, order of samples and choice of
// captions as the loader of pictures, so a training sees the same batches either way, given the same crops.
#pragma once

#include <cstdint>
#include <memory>

#include "dalle/data/loader.h"
#include "dalle/data/token_dataset.h"

namespace dalle::data {

class TokenLoader : public BatchStream {
 public:
  /// `tokens` must outlive the loader. Of `config` the choice of captions, num_streams, loader_threads and
  /// prefetch_batches are used. In each epoch a sample's crop is choose_crop's. Throws ConfigError where batch_size does
  /// not suit world_size.
  TokenLoader(const TokenDataset& tokens, const DataConfig& config, LoaderOptions options);
  ~TokenLoader() override;
  TokenLoader(const TokenLoader&) = delete;
  TokenLoader& operator=(const TokenLoader&) = delete;

  /// Throws CheckpointError where a shard is damaged, DataError for a sample without captions.
  Batch next() override;
  double seconds_waited() const override;
  /// 0: encode-images left unusable pictures out.
  int64_t bad_samples() const override { return 0; }

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Samples first .. first + count - 1 in the order of the set, for evaluation: crop 0, first caption.
Batch load_token_range(const TokenDataset& tokens, int64_t first, int64_t count,
                       const EncodeCaption& encode_caption = {});

}  // namespace dalle::data

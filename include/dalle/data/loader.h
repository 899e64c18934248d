// Batches of pictures and captions, prepared ahead by threads. Everything random about an item is a function of (seed,
// purpose, global position), and batches come in order, so what a training run sees depends neither on the number of
// threads nor on where it was stopped and resumed.
//
// Shapes: B pictures of this rank's share, S picture size, n caption slots.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "dalle/core/tensor.h"
#include "dalle/data/data_config.h"
#include "dalle/data/dataset.h"
#include "dalle/text/caption_encoder.h"

namespace dalle::data {

struct Batch {
  Tensor images;                      // uint8 [B, 3, S, S]; undefined where the data set holds tokens
  Tensor codes;                       // int64 [B, grid_size^2] image tokens; undefined where it holds pictures
  Tensor caption_ids;                 // int64 [B, n]; undefined without encode_caption
  int64_t num_truncated = 0;          // captions of them that were longer than n ids
  std::vector<std::string> keys;      // B
  std::vector<std::string> captions;  // B, the ones chosen
  std::vector<int64_t> positions;     // B, global positions; load_range: indices in the data set
  std::vector<int64_t> indices;       // B, samples of the data set that were used
};

/// A sample as it comes up in training.
struct SampleVisit {
  int64_t position = 0;  // global
  int64_t sample = 0;    // index in the data set; of stored tokens, in the data set that was encoded
  int64_t epoch = 0;
};

/// Ids of a caption, the same number of ids for every caption; called from loader threads.
using EncodeCaption = std::function<text::EncodedCaption(std::string_view caption, const SampleVisit& visit)>;

struct LoaderOptions {
  int64_t batch_size = 1;  // of all ranks together; a multiple of world_size
  int64_t image_size = 256;
  uint64_t seed = 0;
  int64_t start_position = 0;  // global position of the first item: steps done so far times batch_size
  int64_t rank = 0;            // this rank takes items rank * B / W to (rank + 1) * B / W - 1 of each batch
  int64_t world_size = 1;
  bool shuffle = true;
  EncodeCaption encode_caption;  // may be empty
};

/// Batches of training data in order, whatever they are read from.
class BatchStream {
 public:
  virtual ~BatchStream() = default;
  /// The next batch; waits for it. Rethrows what a thread threw, at the batch where it happened and ever after.
  virtual Batch next() = 0;
  virtual double seconds_waited() const = 0;  // in next(), in all
  virtual int64_t bad_samples() const = 0;    // among the batches delivered
};

/// A picture that cannot be decoded or is too small is counted, named (the first 20) and replaced by the next good
/// sample of the data set. next() throws DataError once more than max_bad_share of the samples looked at were bad
/// (BadSampleJudge), where all pictures of a batch of two or more are bad, and after 20 bad samples in a row.
class Loader : public BatchStream {
 public:
  /// `dataset` must outlive the loader. Throws ConfigError where the options do not fit together.
  Loader(const Dataset& dataset, const DataConfig& config, LoaderOptions options);
  ~Loader() override;
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  Batch next() override;
  double seconds_waited() const override;
  int64_t bad_samples() const override;
  int64_t samples_looked_at() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

/// Whether load_range() fails where nothing of a range is usable, or returns no samples.
enum class RangeIs { kNeeded, kMayBeEmpty };

/// Samples first .. first + count - 1 in the order of the data set, for evaluation: augmentation none, no flip, first
/// caption. Unusable pictures are left out with a warning; throws DataError where they are too many (BadSampleJudge) or, but
/// for kMayBeEmpty, nothing is left.
Batch load_range(const Dataset& dataset, const DataConfig& config, int64_t image_size, int64_t first, int64_t count,
                 const EncodeCaption& encode_caption = {}, RangeIs range = RangeIs::kNeeded);

}  // namespace dalle::data

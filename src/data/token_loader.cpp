#include "dalle/data/token_loader.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <exception>

#include "dalle/core/error.h"
#include "dalle/core/str.h"
#include "dalle/data/batch_maker.h"
#include "dalle/data/captions.h"
#include "dalle/data/prefetcher.h"
#include "dalle/data/sample_order.h"

namespace dalle::data {
namespace {

// Rows of one batch as they are read.
class BatchRows {
 public:
  BatchRows(const TokenDataset& tokens, int64_t size) : tokens_(tokens) {
    const int64_t grid = tokens.info().grid_size;
    batch_.codes = at::empty({size, grid * grid}, at::kLong);
  }

  void add(int64_t sample, int64_t crop, int64_t position, int64_t epoch, const EncodeCaption& encode_caption,
           const std::function<std::string(const std::vector<std::string>&)>& choose) {
    const auto captions = tokens_.captions(sample);
    if (captions.empty()) {
      throw DataError(Problem{.place = tokens_.place(sample), .expected = "a caption", .got = "none"});
    }
    const auto row = batch_.codes[static_cast<int64_t>(batch_.keys.size())];
    tokens_.read_codes(sample, crop, {row.mutable_data_ptr<int64_t>(), static_cast<size_t>(row.numel())});
    batch_.keys.push_back(tokens_.key(sample));
    batch_.captions.push_back(choose(captions));
    batch_.positions.push_back(position);
    batch_.indices.push_back(sample);
    if (encode_caption) {
      const SampleVisit visit{.position = position, .sample = tokens_.index(sample), .epoch = epoch};
      encoded_.push_back(encode_caption(batch_.captions.back(), visit));
    }
  }

  Batch finish() {
    if (!encoded_.empty()) set_captions(encoded_, batch_);
    return std::move(batch_);
  }

 private:
  const TokenDataset& tokens_;
  Batch batch_;
  std::vector<text::EncodedCaption> encoded_;
};

}  // namespace

struct TokenLoader::State {
  State(const TokenDataset& tokens, const DataConfig& config, LoaderOptions given)
      : tokens(tokens),
        options(std::move(given)),
        caption(config.caption),
        order(tokens.size(), options.seed, config.num_streams, options.shuffle),
        batches(config.loader_threads, config.prefetch_batches, Prefetcher<Batch>::kEndless,
                [this](int64_t number) { return make(number); }) {}

  Batch make(int64_t number) const {
    const int64_t share = options.batch_size / options.world_size;
    const int64_t first = options.start_position + number * options.batch_size + options.rank * share;
    BatchRows rows(tokens, share);
    for (int64_t position = first; position < first + share; ++position) {
      const int64_t sample = order.index_at(position);
      const int64_t epoch = order.epoch_of(position);
      const int64_t crop = choose_crop(options.seed, epoch, tokens.index(sample), tokens.info().num_crops);
      rows.add(sample, crop, position, epoch, options.encode_caption, [&](const std::vector<std::string>& captions) {
        return choose_caption(captions, caption, options.seed, position);
      });
    }
    return rows.finish();
  }

  const TokenDataset& tokens;
  const LoaderOptions options;
  const CaptionChoice caption;
  const SampleOrder order;
  std::exception_ptr failure;
  Prefetcher<Batch> batches;  // last: its threads use all of the above
};

TokenLoader::TokenLoader(const TokenDataset& tokens, const DataConfig& config, LoaderOptions options) {
  check_batch_split(options);
  state_ = std::make_unique<State>(tokens, config, std::move(options));
}

TokenLoader::~TokenLoader() = default;

Batch TokenLoader::next() {
  if (state_->failure) std::rethrow_exception(state_->failure);
  try {
    return state_->batches.next();
  } catch (...) {
    state_->failure = std::current_exception();
    throw;
  }
}

double TokenLoader::seconds_waited() const { return state_->batches.seconds_waited(); }

Batch load_token_range(const TokenDataset& tokens, int64_t first, int64_t count, const EncodeCaption& encode_caption) {
  const int64_t end = std::min(first + count, tokens.size());
  TORCH_CHECK_VALUE(first >= 0 && first < end, "[token range] samples ", first, " to ", first + count, " of ",
                    tokens.size());
  BatchRows rows(tokens, end - first);
  for (int64_t sample = first; sample < end; ++sample) {
    rows.add(sample, /*crop=*/0, sample, /*epoch=*/0, encode_caption,
             [](const std::vector<std::string>& captions) { return captions.front(); });
  }
  return rows.finish();
}

}  // namespace dalle::data

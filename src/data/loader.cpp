#include "dalle/data/loader.h"

#include <ATen/ATen.h>

#include <exception>

#include "dalle/core/error.h"
#include "dalle/core/str.h"
#include "dalle/data/bad_samples.h"
#include "dalle/data/batch_maker.h"
#include "dalle/data/prefetcher.h"

namespace dalle::data {
struct Loader::State {
  State(const Dataset& dataset, const DataConfig& config, LoaderOptions options)
      : maker(dataset, config, std::move(options)),
        judge(config.max_bad_share),
        batches(config.loader_threads, config.prefetch_batches, Prefetcher<MadeBatch>::kEndless,
                [this](int64_t number) { return maker.make(number); }) {}

  const BatchMaker maker;
  BadSampleJudge judge;
  std::exception_ptr failure;
  Prefetcher<MadeBatch> batches;  // last: its threads use the maker
};

Loader::Loader(const Dataset& dataset, const DataConfig& config, LoaderOptions options)
    : state_(std::make_unique<State>(dataset, config, std::move(options))) {}

Loader::~Loader() = default;

Batch Loader::next() {
  if (state_->failure) std::rethrow_exception(state_->failure);
  try {
    MadeBatch made = state_->batches.next();
    state_->judge.add(made.num_looked_at, made.bad);
    return std::move(made.batch);
  } catch (...) {
    state_->failure = std::current_exception();
    throw;
  }
}

double Loader::seconds_waited() const { return state_->batches.seconds_waited(); }
int64_t Loader::bad_samples() const { return state_->judge.num_bad(); }
int64_t Loader::samples_looked_at() const { return state_->judge.num_looked_at(); }

Batch load_range(const Dataset& dataset, const DataConfig& config, int64_t image_size, int64_t first, int64_t count,
                 const EncodeCaption& encode_caption, RangeIs range) {
  TransformOptions transform = transform_options(config, image_size);
  transform.augmentation = Augmentation::kNone;
  transform.horizontal_flip = false;
  const Background background = parse_background(config.background);
  BadSampleJudge judge(config.max_bad_share);
  Batch batch;
  std::vector<Tensor> images;
  std::vector<text::EncodedCaption> encoded;
  for (int64_t index = first; index < std::min(first + count, dataset.size()); ++index) {
    try {
      RawSample raw = dataset.read(index);
      images.push_back(transform_picture(decode_picture(raw.picture, background), transform, {}));
      batch.keys.push_back(std::move(raw.key));
      batch.captions.push_back(raw.captions.front());
    } catch (const DataError& error) {
      judge.add(1, {{index, str(dataset.place(index), ": ", error.what())}});
      continue;
    }
    judge.add(1, {});
    batch.positions.push_back(index);
    batch.indices.push_back(index);
    if (encode_caption) encoded.push_back(encode_caption(batch.captions.back(), {.position = index, .sample = index}));
  }
  if (images.empty() && range == RangeIs::kMayBeEmpty) return batch;
  if (images.empty()) {
    throw DataError(Problem{.place = "pictures",
                            .expected = str("usable samples from ", first, " on"),
                            .got = str("none of ", dataset.size())});
  }
  batch.images = at::stack(images);
  if (encode_caption) set_captions(encoded, batch);
  return batch;
}

}  // namespace dalle::data

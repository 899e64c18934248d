#include "dalle/data/batch_maker.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "dalle/core/error.h"
#include "dalle/core/random.h"
#include "dalle/core/str.h"
#include "dalle/data/captions.h"

namespace dalle::data {
namespace {

constexpr int64_t kMostReplacements = 20;

[[noreturn]] void fail_all_bad(const MadeBatch& made, const std::string& got) {
  throw DataError(Problem{.place = "pictures",
                          .expected = "usable pictures",
                          .got = str(got, "; the last: ", made.bad.back().reason),
                          .hint = "the warnings above name the first of them; mend them or raise data.max_bad_share"});
}

}  // namespace

BatchMaker::BatchMaker(const Dataset& dataset, const DataConfig& config, LoaderOptions options)
    : dataset_(dataset),
      config_(config),
      options_(std::move(options)),
      transform_(transform_options(config, options_.image_size)),
      background_(parse_background(config.background)),
      order_(dataset.size(), options_.seed, config.num_streams, options_.shuffle) {
  check_batch_split(options_);
}

void check_batch_split(const LoaderOptions& options) {
  if (options.world_size >= 1 && options.batch_size >= 1 && options.batch_size % options.world_size == 0) return;
  throw ConfigError(Problem{.place = "batch_size",
                            .expected = str("a multiple of the number of processes (", options.world_size, ")"),
                            .got = str(options.batch_size)});
}

MadeBatch BatchMaker::make(int64_t number) const {
  const int64_t share = options_.batch_size / options_.world_size;
  const int64_t first = options_.start_position + number * options_.batch_size + options_.rank * share;
  MadeBatch made;
  std::vector<std::optional<Item>> items;
  for (int64_t i = 0; i < share; ++i) items.push_back(try_sample(order_.index_at(first + i), first + i, made));
  if (share > 1 && static_cast<int64_t>(made.bad.size()) == share) {
    fail_all_bad(made, str("a batch of ", share, " without one"));
  }
  std::vector<Tensor> images;
  std::vector<text::EncodedCaption> encoded;
  for (int64_t i = 0; i < share; ++i) {
    const int64_t position = first + i;
    auto& slot = items[static_cast<size_t>(i)];
    Item item = slot ? std::move(*slot) : replace(order_.index_at(position), position, made);
    images.push_back(item.image_3SS);
    if (options_.encode_caption) {
      const SampleVisit visit{.position = position, .sample = item.index, .epoch = order_.epoch_of(position)};
      encoded.push_back(options_.encode_caption(item.caption, visit));
    }
    made.batch.keys.push_back(std::move(item.key));
    made.batch.captions.push_back(std::move(item.caption));
    made.batch.positions.push_back(position);
    made.batch.indices.push_back(item.index);
  }
  made.batch.images = at::stack(images);
  if (options_.encode_caption) set_captions(encoded, made.batch);
  return made;
}

std::optional<BatchMaker::Item> BatchMaker::try_sample(int64_t index, int64_t position, MadeBatch& made) const {
  ++made.num_looked_at;
  try {
    RawSample raw = dataset_.read(index);
    const Tensor image = decode_picture(raw.picture, background_);
    const auto key = random_key(options_.seed, Purpose::kAugment, static_cast<uint64_t>(position));
    return Item{transform_picture(image, transform_, key), std::move(raw.key),
                choose_caption(raw.captions, config_.caption, options_.seed, position), index};
  } catch (const DataError& error) {
    made.bad.push_back({index, str(dataset_.place(index), ": ", error.what())});
    return std::nullopt;
  }
}

BatchMaker::Item BatchMaker::replace(int64_t index, int64_t position, MadeBatch& made) const {
  const int64_t tries = std::min(kMostReplacements, dataset_.size() - 1);
  for (int64_t i = 1; i <= tries; ++i) {
    if (auto item = try_sample((index + i) % dataset_.size(), position, made)) return std::move(*item);
  }
  fail_all_bad(made, str(tries + 1, " samples in a row without one"));
}

void set_captions(const std::vector<text::EncodedCaption>& captions, Batch& batch) {
  const auto rows = static_cast<int64_t>(captions.size());
  const auto columns = static_cast<int64_t>(captions.empty() ? 0 : captions[0].ids.size());
  batch.caption_ids = at::empty({rows, columns}, at::kLong);
  int64_t* out = batch.caption_ids.mutable_data_ptr<int64_t>();
  for (const auto& [ids, truncated] : captions) {
    TORCH_CHECK_VALUE(static_cast<int64_t>(ids.size()) == columns, "[loader] captions were encoded to ", ids.size(),
                      " and ", columns, " ids");
    out = std::copy(ids.begin(), ids.end(), out);
    batch.num_truncated += truncated ? 1 : 0;
  }
}

}  // namespace dalle::data

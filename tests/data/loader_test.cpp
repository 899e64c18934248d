#include "dalle/data/loader.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <map>
#include <mutex>
#include <set>
#include <thread>

#include "dalle/core/error.h"
#include "dalle/core/str.h"
#include "support/memory_source.h"

namespace dalle::data {
namespace {

using testing::dataset_of;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::memory_dataset;
using testing::MemorySource;

DataConfig config_with(int threads = 1, double max_bad_share = 0.01) {
  return {.horizontal_flip = true, .loader_threads = threads, .max_bad_share = max_bad_share};
}

LoaderOptions options_with(int64_t batch_size, int64_t start = 0) {
  return {.batch_size = batch_size,
          .image_size = 16,
          .seed = 4,
          .start_position = start,
          .encode_caption = [](std::string_view caption, const SampleVisit& visit) {
            return text::EncodedCaption{
                .ids = {static_cast<int64_t>(caption.size()), visit.sample, visit.epoch, visit.position},
                .truncated = visit.sample % 3 == 0};
          }};
}

void expect_equal(const Batch& a, const Batch& b) {
  EXPECT_TRUE(a.images.equal(b.images));
  EXPECT_TRUE(a.caption_ids.equal(b.caption_ids));
  EXPECT_EQ(a.num_truncated, b.num_truncated);
  EXPECT_EQ(a.keys, b.keys);
  EXPECT_EQ(a.captions, b.captions);
  EXPECT_EQ(a.positions, b.positions);
  EXPECT_EQ(a.indices, b.indices);
}

TEST(Loader, EveryEpochHoldsEverySampleOnce) {
  const Dataset dataset = memory_dataset(30);
  Loader loader(dataset, config_with(), options_with(7));
  std::map<std::string, int> count;
  for (int i = 0; i < 30; ++i) {  // 210 items: seven epochs, batches straddle them
    const Batch batch = loader.next();
    EXPECT_EQ(batch.images.sizes(), at::IntArrayRef({7, 3, 16, 16}));
    EXPECT_EQ(batch.positions.front(), 7 * i);
    for (size_t k = 0; k < batch.keys.size(); ++k) {
      ++count[batch.keys[k]];
      EXPECT_EQ(batch.keys[k], str("key", batch.indices[k]));
      EXPECT_THAT(batch.captions[k], ::testing::EndsWith(str(" ", batch.indices[k])));
      const Tensor ids = batch.caption_ids[static_cast<int64_t>(k)];
      EXPECT_EQ(ids[1].item<int64_t>(), batch.indices[k]);
      EXPECT_EQ(ids[2].item<int64_t>(), batch.positions[k] / 30) << "the epoch";
      EXPECT_EQ(ids[3].item<int64_t>(), batch.positions[k]);
    }
    EXPECT_EQ(batch.num_truncated,
              std::count_if(batch.indices.begin(), batch.indices.end(), [](int64_t index) { return index % 3 == 0; }));
  }
  EXPECT_EQ(count.size(), 30u);
  for (const auto& [key, n] : count) EXPECT_EQ(n, 7) << key;
}

TEST(Loader, DoesNotDependOnTheNumberOfThreads) {
  const Dataset dataset = memory_dataset(40, {3, 17, 18});
  Loader one(dataset, config_with(1, 0.5), options_with(6));
  Loader five(dataset, config_with(5, 0.5), options_with(6));
  for (int i = 0; i < 30; ++i) expect_equal(one.next(), five.next());
  EXPECT_EQ(one.bad_samples(), five.bad_samples());
  EXPECT_GT(one.bad_samples(), 0);
}

TEST(Loader, ResumesAtAnyPosition) {
  const Dataset dataset = memory_dataset(25);
  Loader whole(dataset, config_with(), options_with(4));
  for (int i = 0; i < 9; ++i) whole.next();
  Loader resumed(dataset, config_with(3), options_with(4, 9 * 4));
  for (int i = 0; i < 10; ++i) expect_equal(whole.next(), resumed.next());
}

TEST(Loader, RanksShareOutTheGlobalBatch) {
  const Dataset dataset = memory_dataset(25);
  Loader whole(dataset, config_with(), options_with(6));
  LoaderOptions second_half = options_with(6);
  second_half.rank = 1;
  second_half.world_size = 2;
  Loader rank_one(dataset, config_with(2), second_half);
  for (int i = 0; i < 8; ++i) {
    const Batch all = whole.next();
    const Batch part = rank_one.next();
    EXPECT_TRUE(part.images.equal(all.images.narrow(0, 3, 3)));
    EXPECT_EQ(part.captions, std::vector<std::string>(all.captions.begin() + 3, all.captions.end()));
  }
  LoaderOptions uneven = second_half;
  uneven.batch_size = 5;
  EXPECT_THROW(Loader(dataset, config_with(), uneven), ConfigError);
}

TEST(Loader, DrawsCaptionsEvenlyOrTakesTheFirst) {
  const Dataset dataset = memory_dataset(10);
  std::map<std::string, int> kinds;
  Loader drawing(dataset, config_with(), options_with(10));
  for (int i = 0; i < 60; ++i) {
    for (const auto& caption : drawing.next().captions) ++kinds[caption.substr(0, caption.find(' '))];
  }
  for (const char* kind : {"caption", "second", "third"}) EXPECT_NEAR(kinds[kind] / 600.0, 1 / 3.0, 0.07);
  DataConfig first = config_with();
  first.caption = CaptionChoice::kFirst;
  Loader loader(dataset, first, options_with(10));
  for (const auto& caption : loader.next().captions) EXPECT_TRUE(caption.starts_with("caption"));
}

TEST(Loader, FlipsHalfOfThePicturesUnlessToldNotTo) {
  const Dataset dataset = memory_dataset(10);
  for (const bool flip : {true, false}) {
    DataConfig config = config_with();
    config.horizontal_flip = flip;
    config.augmentation = Augmentation::kNone;
    LoaderOptions options = options_with(10);
    options.image_size = 20;
    Loader loader(dataset, config, options);
    int64_t flipped = 0;
    for (int i = 0; i < 30; ++i)
      flipped += loader.next().images.select(3, 19).eq(255).all(2).all(1).sum().item<int64_t>();
    EXPECT_NEAR(flipped / 300.0, flip ? 0.5 : 0.0, flip ? 0.1 : 0.0);
  }
}

TEST(Loader, ReplacesABadPictureByTheNextGoodOne) {
  const Dataset dataset = memory_dataset(40, {7, 8});
  LoaderOptions options = options_with(40);
  options.shuffle = false;
  Loader loader(dataset, config_with(1, 0.1), options);
  const Batch batch = loader.next();
  EXPECT_EQ(batch.indices[7], 9);
  EXPECT_EQ(batch.indices[8], 9);
  EXPECT_EQ(batch.positions[7], 7);
  EXPECT_EQ(batch.keys[7], "key9");
  EXPECT_EQ(loader.bad_samples(), 3);  // 7, 8, and 8 again on the way from 7 to 9
  EXPECT_EQ(loader.samples_looked_at(), 43);
}

TEST(Loader, FailsOnceTooManyPicturesAreBad) {
  std::set<int64_t> bad;
  for (int64_t i = 0; i < 100; i += 10) bad.insert(i);
  const Dataset dataset = memory_dataset(100, bad);
  Loader strict(dataset, config_with(2, 0.05), options_with(10));
  try {
    for (int i = 0; i < 10; ++i) strict.next();
    FAIL() << "accepted";
  } catch (const DataError& error) {
    EXPECT_THAT(error.what(), HasSubstr("max_bad_share"));
    EXPECT_THAT(error.what(), HasSubstr("memory: key"));
  }
  EXPECT_THROW(strict.next(), DataError);  // and stays failed
  Loader lenient(dataset, config_with(2, 0.3), options_with(10));
  for (int i = 0; i < 10; ++i) lenient.next();
}

TEST(Loader, OneBadPictureOfAFewEndsNoRun) {
  const Dataset dataset = memory_dataset(40, {0});
  LoaderOptions options = options_with(2);
  options.shuffle = false;
  Loader loader(dataset, config_with(1, 0.01), options);
  for (int i = 0; i < 5 * 20 - 1; ++i) loader.next();  // five epochs; 2.5 % of what is looked at
  EXPECT_EQ(loader.bad_samples(), 5);
  EXPECT_THROW(for (int i = 0; i < 20; ++i) loader.next(), DataError);
}

TEST(Loader, FailsAtOnceWhereNothingIsAPicture) {
  std::set<int64_t> all;
  for (int64_t i = 0; i < 40; ++i) all.insert(i);
  const Dataset dataset = memory_dataset(40, all);
  Loader batches(dataset, config_with(1, 1.0), options_with(4));
  EXPECT_THROW(batches.next(), DataError);
  Loader singles(dataset, config_with(1, 1.0), options_with(1));
  EXPECT_THROW(singles.next(), DataError);
}

TEST(Loader, PicturesThatAreTooSmallCountAsBad) {
  const Dataset dataset = memory_dataset(30);
  LoaderOptions options = options_with(5);
  options.image_size = 24;
  Loader loader(dataset, config_with(), options);
  try {
    loader.next();
    FAIL() << "accepted";
  } catch (const DataError& error) {
    EXPECT_THAT(error.what(), HasSubstr("shorter side"));
  }
}

TEST(Loader, OtherErrorsSurfaceAtTheirBatch) {
  auto source = std::make_unique<MemorySource>(30);
  source->throwing = 12;
  const Dataset dataset = dataset_of(std::move(source));
  LoaderOptions options = options_with(5);
  options.shuffle = false;
  Loader loader(dataset, config_with(4), options);
  EXPECT_EQ(loader.next().indices.front(), 0);
  EXPECT_EQ(loader.next().indices.front(), 5);
  EXPECT_THROW(loader.next(), FileError);
  EXPECT_THROW(loader.next(), FileError);
}

TEST(Loader, PreparesNoMoreThanAskedAndStopsCleanly) {
  auto source = std::make_unique<MemorySource>(1000);
  const MemorySource& reads = *source;
  const Dataset dataset = dataset_of(std::move(source));
  DataConfig config = config_with(3);
  config.prefetch_batches = 2;
  {
    Loader loader(dataset, config, options_with(5));
    loader.next();
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
    EXPECT_LE(reads.num_reads, 15);
    EXPECT_GE(loader.seconds_waited(), 0.0);
  }  // with batches ready and room for none: the threads must end
  Loader unused(dataset, config, options_with(5));
}

TEST(Loader, UsesEveryThreadForDifferentBatches) {
  const Dataset dataset = memory_dataset(50);
  std::mutex mutex;
  std::set<std::thread::id> ids;
  LoaderOptions options = options_with(5);
  options.encode_caption = [&](std::string_view, const SampleVisit&) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    const std::lock_guard lock(mutex);
    ids.insert(std::this_thread::get_id());
    return text::EncodedCaption{.ids = {1}};
  };
  Loader loader(dataset, config_with(3), options);
  for (int i = 0; i < 20; ++i) loader.next();
  EXPECT_EQ(ids.size(), 3u);
}

TEST(LoadRange, GivesSourceOrderWithoutAugmentation) {
  const Dataset dataset = memory_dataset(12, {4});
  const Batch batch = load_range(dataset, config_with(), 20, 2, 5);
  EXPECT_THAT(batch.indices, ElementsAre(2, 3, 5, 6));
  EXPECT_THAT(batch.captions, ElementsAre("caption 2", "caption 3", "caption 5", "caption 6"));
  for (int64_t i = 0; i < 4; ++i) {
    EXPECT_EQ(batch.images[i][0][5][5].item<int64_t>(), batch.indices[static_cast<size_t>(i)]);
    EXPECT_TRUE(batch.images[i].select(2, 0).eq(255).all().item<bool>());  // not flipped
  }
  EXPECT_FALSE(batch.caption_ids.defined());
  EXPECT_EQ(load_range(dataset, config_with(), 20, 10, 100).keys.size(), 2u);
  EXPECT_TRUE(load_range(dataset, config_with(), 20, 4, 1, {}, RangeIs::kMayBeEmpty).keys.empty());
  EXPECT_THROW(load_range(dataset, config_with(), 20, 4, 1), DataError);
  EXPECT_THROW(load_range(dataset, config_with(), 20, 12, 5), DataError);
}

TEST(Loader, TrainsOnTheShippedPictures) {
  const auto emoji = std::filesystem::path(DALLE_SOURCE_DIR) / "data" / "emoji" / "val.tar";
  const Dataset dataset(std::vector<SourceConfig>{{.path = emoji}});
  LoaderOptions options{.batch_size = 65, .image_size = 32, .seed = 1};
  Loader loader(dataset, config_with(2, 0.0), options);
  std::set<std::string> keys;
  for (int i = 0; i < 2; ++i) {
    for (auto& key : loader.next().keys) keys.insert(key);
  }
  EXPECT_EQ(keys.size(), 130u);
  EXPECT_EQ(loader.bad_samples(), 0);
}

}  // namespace
}  // namespace dalle::data

// What training does with captions before a model sees them: BPE dropout, cutting, counting.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>

#include "dalle/training/task_support.h"
#include "training/tiny_runs.h"

namespace dalle::training {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

using Visit = std::pair<int64_t, int64_t>;  // sample, epoch

/// Ids of every visit of the first `num_epochs` epochs. All samples of the tiny data set come up in each.
template <class Task, class Config>
std::map<Visit, Tensor> ids_of_epochs(const Config& config, int64_t batch_size, int64_t num_epochs) {
  constexpr int64_t kNumSamples = 32;
  Task task(config, at::kCPU);
  const auto loader = task.make_loader(batch_size, 0);
  std::map<Visit, Tensor> ids;
  while (static_cast<int64_t>(ids.size()) < num_epochs * kNumSamples) {
    const data::Batch batch = loader->next();
    for (size_t i = 0; i < batch.keys.size(); ++i) {
      const int64_t epoch = batch.positions[i] / kNumSamples;
      if (epoch < num_epochs) ids[{batch.indices[i], epoch}] = batch.caption_ids[static_cast<int64_t>(i)];
    }
  }
  return ids;
}

int64_t num_different(const std::map<Visit, Tensor>& a, const std::map<Visit, Tensor>& b) {
  EXPECT_EQ(a.size(), b.size());
  return std::count_if(a.begin(), a.end(), [&](const auto& entry) { return !entry.second.equal(b.at(entry.first)); });
}

template <class Task, class Config>
void expect_dropout_by_seed_sample_and_epoch(Config config) {
  config.bpe_dropout = 0.5;
  config.data.caption = data::CaptionChoice::kFirst;
  config.data.num_streams = 1;
  const auto ids = ids_of_epochs<Task>(config, 8, 2);
  auto reordered = config;  // other batches, another order of the samples, more threads
  reordered.data.num_streams = 5;
  reordered.data.loader_threads = 3;
  EXPECT_EQ(num_different(ids, ids_of_epochs<Task>(reordered, 6, 2)), 0);
  auto reseeded = config;
  reseeded.trainer.seed += 1;
  EXPECT_GT(num_different(ids, ids_of_epochs<Task>(reseeded, 8, 2)), 32) << "of 64 captions read";
  int64_t changed = 0;
  for (int64_t sample = 0; sample < 32; ++sample) changed += ids.at({sample, 0}).equal(ids.at({sample, 1})) ? 0 : 1;
  EXPECT_GT(changed, 16) << "the second epoch reads most of the 32 captions in another way";
}

TEST(TrainingCaptions, BpeDropoutOfThePriorIsAFunctionOfSeedSampleAndEpoch) {
  expect_dropout_by_seed_sample_and_epoch<PriorTask>(tiny_prior());
}

TEST(TrainingCaptions, BpeDropoutOfClipIsAFunctionOfSeedSampleAndEpoch) {
  expect_dropout_by_seed_sample_and_epoch<ClipTask>(tiny_clip());
}

/// Captions of the run's batches with more tokens than fit, counted one by one.
template <class Task, class Config>
int64_t num_too_long(const Config& config, int64_t length) {
  Task task(config, at::kCPU);
  const auto tokenizer = text::Tokenizer::load(config.tokenizer);
  const auto loader = task.make_loader(config.trainer.batch_size, 0);
  int64_t count = 0;
  for (int64_t step = 0; step < config.trainer.num_steps; ++step) {
    for (const auto& caption : loader->next().captions)
      count += static_cast<int64_t>(tokenizer.encode(caption).size()) > length ? 1 : 0;
  }
  return count;
}

template <class Task, class Config>
void expect_cut_captions_are_counted(Config config, int64_t length) {
  config.bpe_dropout = 0;
  config.validation.sources.clear();
  const testing::TempDirectory scratch("cut-captions");
  set_log_file(scratch / "log.txt");
  ASSERT_TRUE(train(config, scratch / "run"));
  set_log_file("");
  const auto counts = train_values(scratch / "run", "truncated_captions");
  ASSERT_EQ(static_cast<int64_t>(counts.size()), config.trainer.num_steps);
  EXPECT_TRUE(std::is_sorted(counts.begin(), counts.end()));
  const int64_t expected = num_too_long<Task>(config, length);
  EXPECT_GT(expected, 0);
  EXPECT_EQ(counts.back(), static_cast<double>(expected));
  const std::string log = read_file(scratch / "log.txt");
  EXPECT_THAT(log, HasSubstr("some captions are longer than the model's text context"));
  EXPECT_THAT(log, HasSubstr(str(expected, " of ", config.trainer.num_steps * config.trainer.batch_size,
                                 " captions were longer than the model's text context and were cut")));
}

TEST(TrainingCaptions, ThePriorCountsTheOnesThatItCuts) {
  auto config = tiny_prior(5);
  config.model.text_context = 7;
  expect_cut_captions_are_counted<PriorTask>(config, 6);
}

TEST(TrainingCaptions, ClipCountsTheOnesThatItCuts) {
  auto config = tiny_clip(5);
  config.model.text_context = 8;
  expect_cut_captions_are_counted<ClipTask>(config, 6);
}

TEST(TrainingCaptions, AResumedRunGoesOnCounting) {
  const testing::TempDirectory scratch("resumed-captions");
  auto config = tiny_prior(3);
  config.model.text_context = 5;
  config.validation.sources.clear();
  ASSERT_TRUE(train(config, scratch / "run"));
  const auto first = train_values(scratch / "run", "truncated_captions");
  ASSERT_GT(first.back(), 0);
  config.trainer.num_steps = 6;
  ASSERT_TRUE(train(config, scratch / "run", /*resume=*/true));
  const auto all = train_values(scratch / "run", "truncated_captions");
  EXPECT_EQ(std::vector<double>(all.begin(), all.begin() + 3), first);
  EXPECT_TRUE(std::is_sorted(all.begin(), all.end()));
  EXPECT_EQ(latest(scratch / "run").scalars.at("truncated_captions"), all.back());
  EXPECT_EQ(latest(scratch / "run").scalars.at("captions"), 6 * config.trainer.batch_size);
}

TEST(TrainingCaptions, NothingIsSaidWhereAllFitOrThereAreNone) {
  const testing::TempDirectory scratch("whole-captions");
  auto prior = tiny_prior(2);
  prior.model.text_context = 128;
  prior.validation.sources.clear();
  set_log_file(scratch / "log.txt");
  ASSERT_TRUE(train(prior, scratch / "prior"));
  set_log_file("");
  EXPECT_THAT(train_values(scratch / "prior", "truncated_captions"), ::testing::Each(0));
  EXPECT_THAT(read_file(scratch / "log.txt"), Not(HasSubstr("text context")));
  ASSERT_TRUE(train(tiny_dvae(2), scratch / "dvae"));
  for (const auto& line : metrics_of(scratch / "dvae", "train")) EXPECT_FALSE(line.contains("truncated_captions"));
}

}  // namespace
}  // namespace dalle::training

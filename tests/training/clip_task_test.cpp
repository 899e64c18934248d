#include "dalle/training/clip_task.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <set>

#include "dalle/core/tensor_memory.h"
#include "training/tiny_runs.h"

namespace dalle::training {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

PreparedBatch first_batch(TrainingTask& task, int64_t size) {
  return task.prepare(task.make_loader(size, 0)->next(), {});
}

TEST(ClipTask, TheLossIsTheMeanOfBothDirections) {
  ClipTask task(tiny_clip(), at::kCPU);
  start(task);
  const auto batch = first_batch(task, 4);
  const auto output = task.training_step(batch, {.totals = task.counts(batch), .runner = &layers::plain_runner()});
  const auto& model = dynamic_cast<const models::Clip&>(task.module());
  const Tensor image = model.encode_image(task.pixels(batch)), text = model.encode_text(batch.batch.caption_ids);
  const Tensor logits = (at::matmul(image, text.t()) * model.scale()).to(at::kDouble);
  double expected = 0;
  for (int64_t i = 0; i < 4; ++i) {
    expected -= logits.log_softmax(1)[i][i].item<double>() / 8 + logits.log_softmax(0)[i][i].item<double>() / 8;
  }
  EXPECT_NEAR(output.loss.item<double>(), expected, 1e-5 * expected);
  EXPECT_NEAR(output.metrics.at(0).second.item<double>(), 1 / 0.07, 1e-3);
}

// Gradient caching: pictures of all parts are never there as f32 at once.
TEST(ClipTask, ALargeBatchInPartsTakesLittleMemory) {
  auto config = tiny_clip();
  config.model.image_size = 64;
  config.dvae.clear();
  config.reconstructed_share = 0;
  constexpr int64_t kMicroBatch = 4;
  const auto peak_of = [&](int64_t micro_batches) {
    ClipTask task(config, at::kCPU);
    start(task);
    const auto loader = task.make_loader(kMicroBatch, 0);
    const auto step = [&] {
      std::vector<PreparedBatch> batches;
      for (int64_t i = 0; i < micro_batches; ++i) batches.push_back(task.prepare(loader->next(), {}));
      const StepContext context{.totals = {}, .runner = &layers::plain_runner()};
      task.begin_step(batches, context);
      for (const auto& batch : batches) task.training_step(batch, context).loss.backward();
    };
    step();  // gradients are there from now on
    return peak_tensor_bytes(step);
  };
  // Bytes are the loader's, whose threads are not counted here, and features of the step before are freed as new ones are made.
  // As f32 the pictures would be four times this bound.
  const int64_t few = peak_of(2), many = peak_of(32), pairs = (32 - 2) * kMicroBatch, picture = 3 * 64 * 64;
  EXPECT_LT(many - few, pairs * picture) << few << " bytes of 2 parts, " << many << " of 32";
}

TEST(ClipTask, Bf16LearnsAsF32Does) {
  const testing::TempDirectory scratch("clip-bf16");
  std::map<Precision, std::vector<double>> losses;
  for (const Precision precision : {Precision::kF32, Precision::kBf16}) {
    auto config = tiny_clip(60);
    config.precision = precision;
    config.trainer.overfit_one_batch = true;
    config.bpe_dropout = 0;
    config.reconstructed_share = 0;
    const fs::path run = scratch / str(enum_name(precision));
    ASSERT_TRUE(train(config, run));
    losses[precision] = train_values(run, "loss");
  }
  const auto &f32 = losses[Precision::kF32], &bf16 = losses[Precision::kBf16];
  ASSERT_EQ(bf16.size(), f32.size());
  EXPECT_LT(f32.back(), 0.7 * f32.front());
  EXPECT_NE(bf16, f32) << "another number format";
  for (size_t i = 0; i < f32.size(); ++i) EXPECT_NEAR(bf16[i], f32[i], 0.02 * f32.front()) << i;
}

TEST(ClipTask, TheVocabularyIsTheTokenizersAndTwoMore) {
  auto config = tiny_clip();
  const int64_t pieces = text::Tokenizer::load(config.tokenizer).vocab_size();
  ClipTask task(config, at::kCPU);
  EXPECT_THAT(task.model_config_yaml(), HasSubstr(str("text_vocab_size: ", pieces + 2)));
  config.model.text_vocab_size = pieces + 2;
  EXPECT_NO_THROW(ClipTask(config, at::kCPU));
  config.model.text_vocab_size = pieces;
  const std::string message = message_of<ConfigError>([&] { ClipTask(config, at::kCPU); });
  EXPECT_THAT(message, HasSubstr(str("expected ", pieces + 2)));
}

TEST(ClipTask, TheDvaeMustHaveItsPictureSize) {
  auto config = tiny_clip();
  config.model.image_size = 32;
  EXPECT_THAT(message_of<ConfigError>([&] { ClipTask(config, at::kCPU); }), HasSubstr("model.image_size: expected 16"));
}

/// Pixels of one batch of 8 with these settings.
Tensor pixels_with(double share, int64_t shift) {
  auto config = tiny_clip();
  config.reconstructed_share = share;
  config.shift_pixels = shift;
  ClipTask task(config, at::kCPU);
  start(task);
  return task.pixels(first_batch(task, 8));
}

TEST(ClipTask, AShareOfThePicturesComesThroughTheDvae) {
  const auto dvae = models::load_dvae(parts().dvae, {});
  const Tensor plain = pixels_with(0, 0), all = pixels_with(1, 0), some = pixels_with(0.5, 0);
  EXPECT_TRUE(testing::close_to(all, dvae.model->decode(dvae.model->encode(plain)), 1e-5));
  std::set<bool> seen;
  for (int64_t i = 0; i < 8; ++i) {
    const bool through = some[i].equal(all[i]);
    EXPECT_TRUE(through || some[i].equal(plain[i])) << i;
    seen.insert(through);
  }
  EXPECT_EQ(seen.size(), 2U) << "at a half, some are and some are not";
}

TEST(ClipTask, PicturesAreShiftedByWholePixelsWithTheirEdgesRepeated) {
  const Tensor plain = pixels_with(0, 0), moved = pixels_with(0, 2);
  std::set<std::pair<int64_t, int64_t>> offsets;
  for (int64_t i = 0; i < 8; ++i) {
    const Tensor wide = at::replication_pad2d(plain[i].unsqueeze(0), {2, 2, 2, 2})[0];
    int64_t matches = 0;
    for (int64_t top = 0; top <= 4; ++top) {
      for (int64_t left = 0; left <= 4; ++left) {
        if (!moved[i].equal(wide.slice(1, top, top + 16).slice(2, left, left + 16))) continue;
        ++matches;
        offsets.insert({top, left});
      }
    }
    EXPECT_GE(matches, 1) << i;
  }
  EXPECT_GE(offsets.size(), 4U) << "each picture has its own offset";
}

TEST(ClipTask, PicturesDependOnTheirPositionAlone) {
  ClipTask task(tiny_clip(), at::kCPU);
  start(task);
  const auto whole = first_batch(task, 8);
  const auto later = task.prepare(task.make_loader(4, 4)->next(), {.step = 9});
  EXPECT_TRUE(testing::bitwise_equal(later.batch.caption_ids, whole.batch.caption_ids.slice(0, 4, 8)));
  EXPECT_TRUE(testing::close_to(task.pixels(later), task.pixels(whole).slice(0, 4, 8), 1e-5));
}

TEST(ClipTask, EachEpochHasItsOwnBpeDropout) {
  auto config = tiny_clip();
  config.data.sources = {emoji("train.tar", 1)};
  config.data.caption = data::CaptionChoice::kFirst;
  config.bpe_dropout = 0.5;
  config.model.text_context = 16;
  ClipTask task(config, at::kCPU);
  start(task);
  const Tensor ids = first_batch(task, 16).batch.caption_ids;
  std::set<std::string> readings;
  for (int64_t i = 0; i < 16; ++i) readings.insert(str(ids[i]));
  EXPECT_GE(readings.size(), 4U) << "one sample, sixteen epochs";
}

TEST(ClipTask, ReportsRetrievalOnBothSides) {
  ClipTask task(tiny_clip(), at::kCPU);
  start(task);
  const Metrics metrics = task.evaluate(0, layers::plain_runner());
  std::map<std::string, double> values(metrics.begin(), metrics.end());
  EXPECT_EQ(values.at("train_pairs"), 32);
  EXPECT_EQ(values.at("validation_pairs"), 8);
  for (const char* prefix : {"train", "validation"}) {
    for (const char* way : {"_image_to_text_r", "_text_to_image_r"}) {
      const double r1 = values.at(str(prefix, way, 1)), r5 = values.at(str(prefix, way, 5));
      const double r10 = values.at(str(prefix, way, 10));
      EXPECT_LE(r1, r5);
      EXPECT_LE(r5, r10);
      EXPECT_LE(r10, 1);
    }
  }
}

TEST(ClipTask, TheLogitScaleStaysWhereItHasAGradient) {
  ClipTask task(tiny_clip(), at::kCPU);
  start(task);
  const auto& model = dynamic_cast<const models::Clip&>(task.module());
  model.logit_scale.tensor.detach().fill_(9);
  task.after_update(at::zeros({}));
  const Tensor scale = model.scale();
  EXPECT_NEAR(scale.item<double>(), 100, 0.01);
  scale.backward();
  EXPECT_NEAR(model.logit_scale.tensor.grad().item<double>(), 100, 0.01);
  model.logit_scale.tensor.detach().fill_(-1);
  task.after_update(at::zeros({}));
  EXPECT_EQ(model.scale().item<double>(), 1);
}

TEST(ClipTask, ClipsOwnVocabularyIsSaidInTheConfig) {
  auto config = tiny_clip();
  config.tokenizer = std::string(DALLE_SOURCE_DIR) + "/tests/golden/clip_bpe/vocabulary.txt.gz";
  EXPECT_THAT(message_of<ConfigError>([&] { ClipTask(config, at::kCPU); }),
              AllOf(HasSubstr("model.tokenizer_kind"), HasSubstr("clip_bpe")));
  config.model.tokenizer_kind = text::TokenizerKind::kClipBpe;
  ClipTask task(config, at::kCPU);
  start(task);
  EXPECT_THAT(task.model_config_yaml(), AllOf(HasSubstr("clip_bpe"), HasSubstr("text_vocab_size: 634")));
  EXPECT_EQ(task.tokenizer_bytes(), read_file(config.tokenizer));
  const Tensor ids = first_batch(task, 4).batch.caption_ids;
  EXPECT_TRUE(ids.select(1, 0).eq(632).all().item<bool>());
  EXPECT_TRUE(std::get<0>(ids.max(1)).eq(633).all().item<bool>());
}

TEST(ClipTask, RefusesSettingsThatMeanNothing) {
  auto config = tiny_clip();
  config.dvae.clear();
  EXPECT_THAT(message_of<ConfigError>([&] { config.validate("clip.yaml"); }),
              HasSubstr("a dvae for reconstructed_share"));
  config.reconstructed_share = 0;
  EXPECT_NO_THROW(config.validate("clip.yaml"));
  EXPECT_FALSE(ClipTask(config, at::kCPU).identities().contains("dvae"));
}

}  // namespace
}  // namespace dalle::training

#include "dalle/training/prior_task.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <c10/core/GradMode.h>

#include <cmath>

#include "dalle/models/summary.h"
#include "training/tiny_runs.h"

namespace dalle::training {
namespace {

using ::testing::HasSubstr;

PreparedBatch first_batch(TrainingTask& task, int64_t size) {
  return task.prepare(task.make_loader(size, 0)->next(), {});
}

TEST(PriorTask, TheDvaeIsFrozen) {
  const testing::TempDirectory scratch("prior-frozen");
  const auto config = tiny_prior(4);
  PriorTask task(config, at::kCPU);
  ASSERT_TRUE(train_task(task, config, scratch / "run"));
  const auto before = models::load_dvae(config.dvae, {});
  expect_same_tensors(models::named_tensors(task.dvae()), models::named_tensors(*before.model));
  for (const auto& [name, parameter] : task.dvae().named_parameters()) {
    EXPECT_FALSE(parameter->tensor.requires_grad()) << name;
    EXPECT_FALSE(parameter->tensor.grad().defined()) << name;
  }
  const auto checkpoint = latest(scratch / "run");
  EXPECT_EQ(checkpoint.identities.at("dvae"), before.identity);
  EXPECT_EQ(checkpoint.identities.at("tokenizer"), text::Tokenizer::load(config.tokenizer).identity());
  EXPECT_EQ(checkpoint.tokenizer, read_file(config.tokenizer)) << "a sampler needs nothing but the checkpoint";
}

TEST(PriorTask, SeesTheTokensOfTheAveragedDvae) {
  const testing::TempDirectory scratch("prior-ema-dvae");
  auto dvae = tiny_dvae(6);
  dvae.learning_rate = {.start = 1e-2};
  ASSERT_TRUE(train(dvae, scratch / "dvae"));
  auto config = tiny_prior();
  config.dvae = scratch / "dvae";
  PriorTask task(config, at::kCPU);
  EXPECT_EQ(task.identities().at("dvae"), latest(scratch / "dvae").identities.at("ema"));
  const auto batch = first_batch(task, 8);
  const auto averaged = models::load_dvae(config.dvae, {}), raw = models::load_dvae(config.dvae, {.use_ema = false});
  EXPECT_TRUE(batch.tokens_BI.equal(averaged.model->encode(batch.pixels).flatten(1)));
  EXPECT_FALSE(batch.tokens_BI.equal(raw.model->encode(batch.pixels).flatten(1)));
}

// Epoch after epoch the same pictures are batched anew; what is encoded once must be what encoding them again would give.
TEST(PriorTask, TokensKeptFromTheFirstEpochAreThoseOfEncodingAgain) {
  auto config = tiny_prior();
  config.data.augmentation = data::Augmentation::kNone;
  PriorTask task(config, at::kCPU);
  const auto loader = task.make_loader(8, 0);
  const auto dvae = models::load_dvae(config.dvae, {});
  int64_t kept = 0;
  for (int batch = 0; batch < 60; ++batch) {
    data::Batch loaded = loader->next();
    const Tensor pixels = loaded.images.to(at::kFloat) / 255;
    const PreparedBatch prepared = task.prepare(std::move(loaded), {});
    kept += prepared.pixels.defined() ? 0 : 1;
    ASSERT_TRUE(prepared.tokens_BI.equal(dvae.model->encode(pixels).flatten(1))) << batch;
  }
  EXPECT_GT(kept, 0);
  config.data.horizontal_flip = true;
  PriorTask flipping(config, at::kCPU);
  const auto flipped = flipping.make_loader(8, 0);
  for (int batch = 0; batch < 60; ++batch) EXPECT_TRUE(flipping.prepare(flipped->next(), {}).pixels.defined());
}

TEST(PriorTask, TheLossIsAnEighthTextAndTheRestImage) {
  auto config = tiny_prior();
  PriorTask task(config, at::kCPU);
  start(task);
  const auto batch = first_batch(task, 4);
  const auto output = task.training_step(batch, {.totals = task.counts(batch), .runner = &layers::plain_runner()});
  // Number by number: mean over all targets of the batch.
  const auto& model = dynamic_cast<const models::Prior&>(task.module());
  const auto logits = model.forward(batch.batch.caption_ids, batch.tokens_BI);
  const Tensor text = logits.text_logits_BTV.to(at::kDouble).log_softmax(2),
               image = logits.image_logits_BIV.to(at::kDouble).log_softmax(2);
  double text_sum = 0, image_sum = 0, num_text = 0;
  for (int64_t b = 0; b < 4; ++b) {
    for (int64_t t = 0; t < batch.batch.caption_ids.size(1); ++t) {
      const int64_t id = batch.batch.caption_ids[b][t].item<int64_t>();
      if (id < 0) continue;
      num_text += 1;
      text_sum -= text[b][t][id].item<double>();
    }
    for (int64_t i = 0; i < 16; ++i) image_sum -= image[b][i][batch.tokens_BI[b][i].item<int64_t>()].item<double>();
  }
  EXPECT_EQ(task.counts(batch), (std::vector<double>{num_text, 64}));
  EXPECT_LT(num_text, 4 * 9) << "some captions are shorter than the context";
  EXPECT_EQ(output.metrics[0].first, "image_loss");
  EXPECT_NEAR(output.metrics[0].second.item<double>(), image_sum / 64, 1e-5);
  EXPECT_EQ(output.metrics[1].first, "text_loss");
  EXPECT_NEAR(output.metrics[1].second.item<double>(), text_sum / num_text, 1e-5);
  EXPECT_NEAR(output.loss.item<double>(), text_sum / num_text / 8 + image_sum / 64 * 7 / 8, 1e-5);
}

TEST(PriorTask, SizesComeFromTheDvaeAndTheTokenizer) {
  auto config = tiny_prior();
  const int64_t pieces = text::Tokenizer::load(config.tokenizer).vocab_size();
  const auto made = config::load_config<models::PriorConfig>(
      config::parse_yaml(PriorTask(config, at::kCPU).model_config_yaml(), "model"));
  EXPECT_EQ(made.grid_size, 4);
  EXPECT_EQ(made.image_vocab_size, 16);
  EXPECT_EQ(made.text_vocab_size, pieces);
  config.model.grid_size = 8;
  EXPECT_THAT(message_of<ConfigError>([&] { PriorTask(config, at::kCPU); }),
              HasSubstr("model.grid_size: expected 4, as the dVAE has"));
  config.model.grid_size = 4;
  config.model.image_vocab_size = 8192;
  EXPECT_THAT(message_of<ConfigError>([&] { PriorTask(config, at::kCPU); }),
              HasSubstr("model.image_vocab_size: expected 16"));
  config.model.image_vocab_size = 0;
  config.model.text_vocab_size = 16384;
  EXPECT_THAT(message_of<ConfigError>([&] { PriorTask(config, at::kCPU); }), HasSubstr("as the tokenizer has"));
}

TEST(PriorTask, NeedsADvaeAndATokenizer) {
  auto config = tiny_prior();
  config.dvae = parts().scratch / "nowhere";
  EXPECT_THAT(message_of<ConfigError>([&] { PriorTask(config, at::kCPU); }), HasSubstr("nowhere"));
  config = tiny_prior();
  config.tokenizer = parts().scratch.path() / "dvae";
  EXPECT_THAT(message_of<ConfigError>([&] { PriorTask(config, at::kCPU); }), HasSubstr("train-tokenizer"));
}

TEST(PriorTask, BpeDropoutIsForTrainingOnly) {
  auto config = tiny_prior();
  config.bpe_dropout = 0.9;
  config.data.caption = data::CaptionChoice::kFirst;
  PriorTask dropped(config, at::kCPU);
  config.bpe_dropout = 0;
  PriorTask plain(config, at::kCPU);
  EXPECT_FALSE(first_batch(dropped, 4).batch.caption_ids.equal(first_batch(plain, 4).batch.caption_ids));
  start(dropped);
  start(plain);
  EXPECT_EQ(dropped.evaluate(0, layers::plain_runner()), plain.evaluate(0, layers::plain_runner()));
}

void expect_dropout_in_training_only(const PriorTraining& without, const PriorTraining& with) {
  PriorTask plain(without, at::kCPU);
  PriorTask dropped(with, at::kCPU);
  start(plain);
  start(dropped);
  const c10::NoGradGuard no_grad;
  for (PriorTask* task : {&plain, &dropped}) {  // heads start at zero, which would hide everything before them
    auto& model = dynamic_cast<models::Prior&>(task->module());
    model.image_head.weight->tensor.copy_(at::arange(16 * 16).view({16, 16}).remainder(7) * 0.1);
  }
  const auto batch = first_batch(plain, 4);
  const auto loss = [&](PriorTask& task) {
    return task.training_step(batch, {.totals = task.counts(batch), .runner = &layers::plain_runner()})
        .loss.item<double>();
  };
  EXPECT_EQ(loss(dropped), loss(dropped));
  EXPECT_GT(std::abs(loss(dropped) - loss(plain)), 1e-4);
  EXPECT_EQ(dropped.evaluate(0, layers::plain_runner()), plain.evaluate(0, layers::plain_runner()));
}

TEST(PriorTask, DropoutIsForTrainingOnly) {
  auto config = tiny_prior();
  config.dropout = 0.5;
  expect_dropout_in_training_only(tiny_prior(), config);
}

TEST(PriorTask, AttentionDropoutIsForTrainingOnly) {
  auto config = tiny_prior();
  config.attention_dropout = 0.5;
  expect_dropout_in_training_only(tiny_prior(), config);
}

TEST(PriorTask, ValidationDoesNotDependOnItsBatches) {
  auto config = tiny_prior();
  std::vector<Metrics> results;
  for (const int64_t batch_size : {8, 3}) {
    config.validation.batch_size = batch_size;
    PriorTask task(config, at::kCPU);
    start(task);
    results.push_back(task.evaluate(0, layers::plain_runner()));
  }
  ASSERT_EQ(results[0].size(), 6U);
  for (size_t i = 0; i < results[0].size(); ++i) {
    EXPECT_NEAR(results[1][i].second, results[0][i].second, 1e-5) << results[0][i].first;
  }
  EXPECT_EQ(results[0][1].first, "train_image_loss");
  EXPECT_NEAR(results[0][1].second, std::log(16), 0.5) << "an untrained prior knows nothing of 16 codes";
}

TEST(PriorTask, CaptionDropoutLeavesOutItsShareOfCaptions) {
  auto config = tiny_prior();
  config.caption_dropout = 0.3;
  config.bpe_dropout = 0;
  PriorTask task(config, at::kCPU);
  const auto all_pads = [](const Tensor& ids_BT) { return (ids_BT < 0).all(1); };
  const Tensor ids = first_batch(task, 400).batch.caption_ids;
  const double share = all_pads(ids).to(at::kFloat).mean().item<double>();
  EXPECT_NEAR(share, 0.3, 4 * std::sqrt(0.3 * 0.7 / 400));
  EXPECT_TRUE(first_batch(task, 100).batch.caption_ids.equal(ids.slice(0, 0, 100))) << "a function of the position";
  config.trainer.seed += 1;
  PriorTask other(config, at::kCPU);
  EXPECT_FALSE(all_pads(first_batch(other, 400).batch.caption_ids).equal(all_pads(ids)));
  config.caption_dropout = 0;
  PriorTask none(config, at::kCPU);
  EXPECT_FALSE(all_pads(first_batch(none, 400).batch.caption_ids).any().item<bool>());
}

TEST(PriorTask, CostsThreeForwardPasses) {
  PriorTask task(tiny_prior(), at::kCPU);
  const auto& model = dynamic_cast<const models::Prior&>(task.module());
  EXPECT_EQ(task.cost().flops_per_sample, 3 * models::summarize(model).forward_flops_per_sample);
  EXPECT_GT(task.cost().flops_per_sample, 0);
  EXPECT_EQ(task.cost().dtype, at::kFloat);
}

TEST(PriorTask, SamplesTheFirstCaptionsOfBothDataSetsAndYours) {
  auto config = tiny_prior();
  config.preview_texts = {"a red dragon", "zwei Hasen"};
  PriorTask task(config, at::kCPU);
  start(task);
  std::vector<std::string> names;
  for (const auto& sheet : task.preview(3)) names.push_back(sheet.name);
  EXPECT_THAT(names, ::testing::ElementsAre("samples", "samples-held-out", "samples-texts"));
  config.preview_captions = 0;
  config.preview_texts.clear();
  EXPECT_TRUE(PriorTask(config, at::kCPU).preview(3).empty());
}

TEST(PriorTask, EveryValidationHasSamplesAndThePositionsLoss) {
  const testing::TempDirectory scratch("prior-validation");
  auto config = tiny_prior(4);
  config.trainer.validation_interval_steps = 2;
  ASSERT_TRUE(train(config, scratch / "run"));
  for (const char* file : {"samples-00000002", "samples-held-out-00000004", "samples-00000004",
                           "position-loss-00000002", "position-loss-00000004"}) {
    EXPECT_TRUE(fs::exists(scratch / "run/samples" / (std::string(file) + ".png"))) << file;
  }
}

TEST(PriorTask, ShowsWhatItSeesAndDraws) {
  PriorTask task(tiny_prior(), at::kCPU);
  start(task);
  const auto batch = first_batch(task, 4);
  task.evaluate(7, layers::plain_runner());
  for (const auto& sheet : {task.input_sheet(batch), task.preview(7).at(0), task.validation_sheets(7).at(0)}) {
    EXPECT_FALSE(sheet.name.empty());
    ASSERT_EQ(sheet.picture.dim(), 3);
    EXPECT_EQ(sheet.picture.size(2), 3);
    EXPECT_GT(sheet.picture.to(at::kFloat).std().item<double>(), 5) << "not blank";
  }
}

}  // namespace
}  // namespace dalle::training

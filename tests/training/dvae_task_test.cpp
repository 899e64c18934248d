#include "dalle/training/dvae_task.h"

#include <c10/core/GradMode.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <map>

#include "dalle/training/dvae_relaxation.h"
#include "training/tiny_runs.h"

namespace dalle::training {
namespace {

std::map<std::string, double> by_name(const Metrics& metrics) { return {metrics.begin(), metrics.end()}; }

/// A task whose weights are far enough from their start to matter.
void make_lively(TrainingTask& task) {
  task.module().materialize(at::kCPU);
  task.module().initialize(11);
  const c10::NoGradGuard no_grad;
  for (const auto& [name, parameter] : task.module().named_parameters()) parameter->tensor.mul_(2);
}

PreparedBatch first_batch(TrainingTask& task, int64_t size) {
  return task.prepare(task.make_loader(size, 0)->next(), {});
}

TEST(DvaeTask, TheKlCoefficientIsThePapers) {
  // 6.6 / 192 = 6.6 * 32^2 / (3 * 256^2); at stride 4 there are four times the positions.
  EXPECT_DOUBLE_EQ(kl_coefficient(KlNormalization::kPaper, 6.6, 32, 256), 0.034375);
  EXPECT_DOUBLE_EQ(kl_coefficient(KlNormalization::kPaper, 6.6, 64, 256), 0.1375);
  EXPECT_DOUBLE_EQ(kl_coefficient(KlNormalization::kPaper, 6.6, 8, 64), 6.6 / 192);
  EXPECT_DOUBLE_EQ(kl_coefficient(KlNormalization::kPerPosition, 0.05, 8, 32), 0.05);
}

TEST(DvaeTask, SchedulesAreThePapers) {
  auto config = tiny_dvae();
  config.relaxation = {};  // the defaults
  const DvaeTask task(config, at::kCPU);
  const auto at_step = [&](int64_t step) { return by_name(task.schedule_values(step)); };
  EXPECT_DOUBLE_EQ(at_step(0)["temperature"], 1);
  EXPECT_DOUBLE_EQ(at_step(0)["kl_weight"], 0);
  EXPECT_NEAR(at_step(2500)["kl_weight"], 3.3, 1e-12);
  EXPECT_DOUBLE_EQ(at_step(5000)["kl_weight"], 6.6);
  EXPECT_NEAR(at_step(75000)["temperature"], (1 + 1.0 / 16) / 2, 1e-12);
  EXPECT_DOUBLE_EQ(at_step(150000)["temperature"], 1.0 / 16);
  EXPECT_DOUBLE_EQ(at_step(3000000)["temperature"], 1.0 / 16);
  EXPECT_DOUBLE_EQ(at_step(3000000)["kl_weight"], 6.6);
}

// -ln f of one sub-pixel, written out (paper A.3, equation 2).
double nll(double pixel, double mu, double log_b) {
  const double x = 0.8 * pixel + 0.1;
  return std::log(2 * x * (1 - x)) + log_b + std::abs(std::log(x / (1 - x)) - mu) / std::exp(log_b);
}

struct SlowLoss {
  double nll = 0, kl = 0;
};

/// The relaxed evidence lower bound of a batch, number by number in f64 from the encoder's logits on.
SlowLoss slow_loss(const models::Dvae& model, const PreparedBatch& batch, const DvaeTraining& config,
                   double temperature) {
  const int64_t size = batch.pixels.size(0), vocab = config.model.vocab_size, grid = config.model.grid_size();
  const Tensor logits_BPV =
      model.encode_logits(batch.pixels).permute({0, 2, 3, 1}).reshape({size, grid * grid, vocab}).contiguous();
  Tensor z_BPV = at::empty_like(logits_BPV);
  SlowLoss loss;
  for (int64_t b = 0; b < size; ++b) {
    const RandomKey key[] = {random_key(static_cast<uint64_t>(config.trainer.seed), Purpose::kGumbel,
                                        static_cast<uint64_t>(batch.batch.positions[static_cast<size_t>(b)]))};
    const Tensor noise = gumbel_rows(key, grid * grid * vocab, at::kCPU);
    for (int64_t p = 0; p < grid * grid; ++p) {
      const float* row = logits_BPV[b][p].const_data_ptr<float>();
      const float* gumbel = noise.const_data_ptr<float>() + p * vocab;
      float* z = z_BPV[b][p].mutable_data_ptr<float>();
      double sum_q = 0, sum_z = 0;
      for (int64_t v = 0; v < vocab; ++v)
        sum_q += std::exp(row[v]), sum_z += std::exp((row[v] + gumbel[v]) / temperature);
      for (int64_t v = 0; v < vocab; ++v) {
        const double q = std::exp(row[v]) / sum_q;
        loss.kl += q * std::log(q * static_cast<double>(vocab)) / static_cast<double>(size * grid * grid);
        z[v] = static_cast<float>(std::exp((row[v] + gumbel[v]) / temperature) / sum_z);
      }
    }
  }
  const Tensor stats = model.decode_stats(z_BPV.view({size, grid, grid, vocab}).permute({0, 3, 1, 2})).contiguous();
  const Tensor pixels = batch.pixels.contiguous();
  const int64_t plane = 3 * pixels.size(2) * pixels.size(3);
  for (int64_t b = 0; b < size; ++b) {
    const float* x = pixels.const_data_ptr<float>() + b * plane;
    const float* s = stats.const_data_ptr<float>() + 2 * b * plane;
    for (int64_t i = 0; i < plane; ++i) loss.nll += nll(x[i], s[i], s[plane + i]) / static_cast<double>(size * plane);
  }
  return loss;
}

TEST(DvaeTask, TheLossIsTheRelaxedBound) {
  auto config = tiny_dvae();
  DvaeTask task(config, at::kCPU);
  make_lively(task);
  const auto batch = first_batch(task, 3);
  const auto& model = dynamic_cast<const models::Dvae&>(task.module());
  for (const int64_t step : {0, 6, 30}) {
    const auto schedule = by_name(task.schedule_values(step));
    const StepContext context{.step = step, .totals = task.counts(batch), .runner = &layers::plain_runner()};
    const auto output = task.training_step(batch, context);
    const auto slow = slow_loss(model, batch, config, schedule.at("temperature"));
    EXPECT_EQ(output.metrics[0].first, "nll");
    EXPECT_NEAR(output.metrics[0].second.item<double>(), slow.nll, 1e-5 * std::abs(slow.nll));
    EXPECT_EQ(output.metrics[1].first, "kl");
    EXPECT_NEAR(output.metrics[1].second.item<double>(), slow.kl, 1e-5 * slow.kl);
    EXPECT_GT(slow.kl, 0.01) << "a uniform code would hide its weight";
    const double weight = schedule.at("kl_weight") * 4 * 4 / (3 * 16 * 16);
    EXPECT_NEAR(output.loss.item<double>(), slow.nll + weight * slow.kl, 1e-5 * std::abs(slow.nll));
  }
}

TEST(DvaeTask, LogScalesCanBeClamped) {
  auto config = tiny_dvae();
  config.relaxation.min_log_scale = 50;
  DvaeTask task(config, at::kCPU);
  make_lively(task);
  const auto batch = first_batch(task, 2);
  const auto output = task.training_step(batch, {.totals = task.counts(batch), .runner = &layers::plain_runner()});
  // With b = e^50 only ln(2 x (1 - x)) + 50 is left of the likelihood.
  EXPECT_NEAR(output.metrics[0].second.item<double>(), 49, 1);
}

StepOutput step_of(DvaeTask& task, const PreparedBatch& batch, bool is_logged = false) {
  return task.training_step(
      batch, {.step = 3, .totals = task.counts(batch), .runner = &layers::plain_runner(), .is_logged = is_logged});
}

TEST(DvaeTask, EachLikelihoodIsTrained) {
  for (const auto likelihood : {layers::Likelihood::kLaplace, layers::Likelihood::kGaussian}) {
    auto config = tiny_dvae();
    config.model.likelihood = likelihood;
    config.relaxation.kl_weight_end = 0;
    DvaeTask task(config, at::kCPU);
    make_lively(task);
    const auto batch = first_batch(task, 3);
    const auto& model = dynamic_cast<const models::Dvae&>(task.module());
    const Tensor relaxed = relax_codes(model.encode_logits(batch.pixels), batch.batch.positions,
                                       {.seed = 3, .temperature = by_name(task.schedule_values(3)).at("temperature")})
                               .codes_BVHW;
    const double expected =
        layers::pixel_nll(likelihood, batch.pixels, model.decode_stats(relaxed)).mean().item<double>();
    EXPECT_NEAR(step_of(task, batch).loss.item<double>(), expected, 1e-5 * std::abs(expected));
  }
}

TEST(DvaeTask, StraightThroughDecodesTheHardCode) {
  auto config = tiny_dvae();
  config.relaxation.straight_through = true;
  config.relaxation.kl_weight_end = 0;
  DvaeTask task(config, at::kCPU);
  make_lively(task);
  const auto batch = first_batch(task, 3);
  const auto& model = dynamic_cast<const models::Dvae&>(task.module());
  const Tensor relaxed = relax_codes(model.encode_logits(batch.pixels), batch.batch.positions, {.seed = 3}).codes_BVHW;
  const Tensor stats = model.decode_stats(model.decoder_input(relaxed.argmax(1)));
  const double expected = layers::pixel_nll(config.model.likelihood, batch.pixels, stats).mean().item<double>();
  EXPECT_NEAR(step_of(task, batch).loss.item<double>(), expected, 1e-5 * std::abs(expected));
}

TEST(DvaeTask, TheLossOfACodebookIsLikelihoodAndCommitment) {
  auto config = tiny_vq();
  config.vector_quantizer.commitment_weight = 3;
  DvaeTask task(config, at::kCPU);
  make_lively(task);
  const auto batch = first_batch(task, 3);
  const auto& model = dynamic_cast<const models::Dvae&>(task.module());
  const Tensor vectors = model.encode_logits(batch.pixels), codes = model.quantizer->lookup(model.codes_of(vectors));
  const double nll =
      layers::pixel_nll(config.model.likelihood, batch.pixels, model.decode_stats(codes)).mean().item<double>();
  const double commitment = (vectors - codes).square().mean().item<double>();
  const auto output = step_of(task, batch);
  EXPECT_NEAR(output.loss.item<double>(), nll + 3 * commitment, 1e-5 * std::abs(nll));
  EXPECT_EQ(output.metrics[1].first, "commitment");
  EXPECT_NEAR(output.metrics[1].second.item<double>(), commitment, 1e-5 * commitment);
  EXPECT_GT(commitment, 0.01);
  EXPECT_TRUE(task.schedule_values(0).empty()) << "no temperature, no KL weight";
}

TEST(DvaeTask, TheCodebookMovesWithTheUpdateUnlessItIsFrozen) {
  for (const bool frozen : {false, true}) {
    auto config = tiny_vq();
    if (frozen) config.trainer.freeze = {"quantizer."};
    DvaeTask task(config, at::kCPU);
    make_lively(task);
    const auto& quantizer = *dynamic_cast<const models::Dvae&>(task.module()).quantizer;
    const Tensor before = quantizer.codebook.tensor.clone();
    step_of(task, first_batch(task, 4)).loss.backward();
    EXPECT_TRUE(at::equal(quantizer.codebook.tensor, before)) << "not before the update";
    EXPECT_FALSE(quantizer.codebook.tensor.grad().defined());
    task.after_update(at::ones({}));
    EXPECT_TRUE(at::equal(quantizer.codebook.tensor, before)) << "not with an update that was skipped";
    task.after_update(at::zeros({}));
    EXPECT_EQ(at::equal(quantizer.codebook.tensor, before), frozen);
  }
}

TEST(DvaeTask, CountsTheCodesOfALoggedStepsWholeBatch) {
  DvaeTask task(tiny_dvae(), at::kCPU);
  make_lively(task);
  const auto loader = task.make_loader(4, 0);
  const auto first = task.prepare(loader->next(), {}), second = task.prepare(loader->next(), {});
  const auto& model = dynamic_cast<const models::Dvae&>(task.module());
  step_of(task, first, true);
  step_of(task, second, true);  // another micro-batch of the same step
  evaluation::CodeUsage usage(16);
  usage.add(model.encode(first.pixels));
  usage.add(model.encode(second.pixels));
  auto values = by_name(task.batch_values());
  EXPECT_EQ(values.at("batch_perplexity"), usage.perplexity());
  EXPECT_EQ(values.at("batch_codes_used"), usage.share_used());
  EXPECT_GT(usage.perplexity(), 1);
}

TEST(DvaeTask, TheGapClosesWithTheTemperature) {
  const auto gap_at = [](double temperature) {
    auto config = tiny_dvae();
    config.relaxation.temperature_end = temperature;
    config.relaxation.temperature_steps = 0;
    DvaeTask task(config, at::kCPU);
    make_lively(task);
    const c10::NoGradGuard no_grad;
    auto metrics = by_name(task.evaluate(0, layers::plain_runner()));
    EXPECT_DOUBLE_EQ(metrics["elb_gap"], metrics["nll_hard"] - metrics["nll_relaxed"]);
    return std::abs(metrics["elb_gap"]);
  };
  EXPECT_GT(gap_at(1), 1e-3);
  EXPECT_LT(gap_at(1e-6), 1e-5);
}

TEST(DvaeTask, ValidationDoesNotDependOnItsBatches) {
  auto config = tiny_dvae();
  std::vector<std::map<std::string, double>> results;
  for (const int64_t batch_size : {8, 3}) {
    config.validation.batch_size = batch_size;
    DvaeTask task(config, at::kCPU);
    make_lively(task);
    const c10::NoGradGuard no_grad;
    results.push_back(by_name(task.evaluate(5, layers::plain_runner())));
  }
  ASSERT_TRUE(results[0].contains("psnr") && results[0].contains("ssim") && results[0].contains("codes_used"));
  for (const auto& [name, value] : results[0])
    EXPECT_NEAR(results[1].at(name), value, 1e-5 * std::abs(value) + 1e-7) << name;
}

TEST(DvaeTask, NoValidationDataNoNumbers) {
  auto config = tiny_dvae();
  config.validation.sources.clear();
  DvaeTask task(config, at::kCPU);
  make_lively(task);
  EXPECT_TRUE(task.evaluate(0, layers::plain_runner()).empty());
  EXPECT_EQ(task.preview(0).size(), 1U) << "training pictures are shown instead";
}

TEST(DvaeTask, ShowsWhatItSeesAndMakes) {
  DvaeTask task(tiny_dvae(), at::kCPU);
  make_lively(task);
  const auto batch = first_batch(task, 4);
  for (const auto& sheet : {task.input_sheet(batch), task.preview(7).at(0)}) {
    EXPECT_FALSE(sheet.name.empty());
    EXPECT_EQ(sheet.picture.scalar_type(), at::kByte);
    ASSERT_EQ(sheet.picture.dim(), 3);
    EXPECT_GE(sheet.picture.size(0), 3 * 16) << "three rows of pictures, or more";
    EXPECT_EQ(sheet.picture.size(2), 3);
    EXPECT_GT(sheet.picture.to(at::kFloat).std().item<double>(), 5) << "not blank";
  }
}

}  // namespace
}  // namespace dalle::training

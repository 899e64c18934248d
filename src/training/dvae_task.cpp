#include "dalle/training/dvae_task.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>

#include "dalle/evaluation/code_usage.h"
#include "dalle/generation/picture_quality.h"
#include "dalle/layers/likelihood.h"
#include "dalle/layers/relaxation.h"
#include "dalle/training/task_support.h"

namespace dalle::training {
namespace {

models::DvaeCompute compute_of(const DvaeTraining& config, at::Device device) {
  return {compute_dtype(config.precision, device), compute_dtype(config.relaxation_precision, device)};
}

}  // namespace

double kl_coefficient(KlNormalization normalization, double weight, int64_t grid_size, int64_t image_size) {
  if (normalization == KlNormalization::kPerPosition) return weight;
  return weight * static_cast<double>(grid_size * grid_size) / static_cast<double>(3 * image_size * image_size);
}

DvaeTask::DvaeTask(const DvaeTraining& config, at::Device device)
    : config_(config),
      device_(device),
      dataset_(config.data.sources),
      validation_(open_validation(config.validation)),
      model_(config.model, compute_of(config, device)) {}

std::string DvaeTask::model_config_yaml() const { return config::emit_yaml(config::dump(config_.model)); }

std::unique_ptr<data::Loader> DvaeTask::make_loader(int64_t micro_batch_size, int64_t start_position) {
  return std::make_unique<data::Loader>(
      dataset_, config_.data,
      loader_options(config_.trainer, config_.model.image_size, micro_batch_size, start_position));
}

PreparedBatch DvaeTask::prepare(data::Batch batch, const StepContext&) {
  PreparedBatch prepared;
  prepared.pixels = to_unit_range(batch.images, device_);
  prepared.batch = std::move(batch);
  return prepared;
}

std::vector<double> DvaeTask::counts(const PreparedBatch& batch) const {
  return {static_cast<double>(batch.pixels.size(0))};
}

double DvaeTask::temperature(int64_t step) const {
  const auto& relax = config_.relaxation;
  return optim::cosine(relax.temperature_start, relax.temperature_end, relax.temperature_steps, step);
}

double DvaeTask::kl_weight(int64_t step) const {
  const auto& relax = config_.relaxation;
  return optim::cosine(relax.kl_weight_start, relax.kl_weight_end, relax.kl_weight_steps, step);
}

Metrics DvaeTask::schedule_values(int64_t step) const {
  return {{"temperature", temperature(step)}, {"kl_weight", kl_weight(step)}};
}

Tensor DvaeTask::gumbel(const std::vector<int64_t>& positions, Purpose purpose) const {
  std::vector<RandomKey> keys;
  for (const int64_t position : positions) {
    keys.push_back(random_key(static_cast<uint64_t>(config_.trainer.seed), purpose, static_cast<uint64_t>(position)));
  }
  const int64_t grid = config_.model.grid_size(), vocab = config_.model.vocab_size;
  // Codes innermost: the channels-last layout that the encoder's logits have.
  return gumbel_rows(keys, grid * grid * vocab, device_)
      .view({static_cast<int64_t>(positions.size()), grid, grid, vocab})
      .permute({0, 3, 1, 2});
}

Tensor DvaeTask::negative_log_likelihood(const Tensor& pixels, const Tensor& stats_B6HW) const {
  const Tensor mu = stats_B6HW.slice(1, 0, 3);
  Tensor log_b = stats_B6HW.slice(1, 3, 6);
  if (config_.relaxation.min_log_scale) log_b = log_b.clamp_min(*config_.relaxation.min_log_scale);
  return layers::logit_laplace_nll(layers::map_pixels(pixels), mu, log_b).flatten(1).sum(1);
}

StepOutput DvaeTask::training_step(const PreparedBatch& batch, const StepContext& context) {
  const Tensor logits = model_.encode_logits(batch.pixels, *context.runner);
  const Tensor relaxed =
      layers::gumbel_softmax(logits, gumbel(batch.batch.positions, Purpose::kGumbel), temperature(context.step));
  const Tensor stats = model_.decode_stats(relaxed, *context.runner);
  const double images = context.totals[0];
  const double sub_pixels = static_cast<double>(3 * config_.model.image_size * config_.model.image_size);
  const Tensor nll = negative_log_likelihood(batch.pixels, stats).sum() / (images * sub_pixels);
  const Tensor kl = layers::kl_to_uniform(logits).mean({1, 2}).sum() / images;
  const double coefficient = kl_coefficient(config_.relaxation.kl_normalization, kl_weight(context.step),
                                            config_.model.grid_size(), config_.model.image_size);
  return {.loss = nll + kl * coefficient, .metrics = {{"nll", nll}, {"kl", kl}}};
}

Metrics DvaeTask::evaluate(int64_t step) {
  if (!validation_) return {};
  const c10::NoGradGuard no_grad;
  const int64_t count = validation_size(*validation_, config_.validation);
  const double sub_pixels = static_cast<double>(3 * config_.model.image_size * config_.model.image_size);
  evaluation::CodeUsage usage(config_.model.vocab_size);
  double images = 0, relaxed_nll = 0, hard_nll = 0, argmax_nll = 0, kl = 0, psnr = 0, ssim = 0;
  for (int64_t first = 0; first < count; first += config_.validation.batch_size) {
    const int64_t size = std::min(config_.validation.batch_size, count - first);
    const auto batch = data::load_range(*validation_, config_.data, config_.model.image_size, first, size);
    const Tensor pixels = to_unit_range(batch.images, device_);
    images += static_cast<double>(pixels.size(0));
    const Tensor logits = model_.encode_logits(pixels);
    const Tensor noise = gumbel(batch.positions, Purpose::kEvaluation);
    const int64_t vocab = config_.model.vocab_size;
    const Tensor codes = layers::argmax_codes(logits);
    const Tensor hard = layers::argmax_codes(logits + noise);  // the same noise: a draw from q, and its relaxation
    const Tensor stats = model_.decode_stats(layers::one_hot_codes(codes, vocab));
    const Tensor reconstruction = layers::reconstruction_from_stats(stats);
    relaxed_nll +=
        negative_log_likelihood(pixels, model_.decode_stats(layers::gumbel_softmax(logits, noise, temperature(step))))
            .sum()
            .item<double>();
    hard_nll +=
        negative_log_likelihood(pixels, model_.decode_stats(layers::one_hot_codes(hard, vocab))).sum().item<double>();
    argmax_nll += negative_log_likelihood(pixels, stats).sum().item<double>();
    kl += layers::kl_to_uniform(logits).mean({1, 2}).sum().item<double>();
    psnr += generation::psnr(pixels, reconstruction).sum().item<double>();
    ssim += generation::ssim(pixels, reconstruction).sum().item<double>();
    usage.add(codes);
  }
  const double terms = images * sub_pixels;
  return {{"nll_relaxed", relaxed_nll / terms},
          {"nll_hard", hard_nll / terms},
          {"nll_argmax", argmax_nll / terms},
          {"elb_gap", (hard_nll - relaxed_nll) / terms},
          {"kl", kl / images},
          {"psnr", psnr / images},
          {"ssim", ssim / images},
          {"codes_used", usage.share_used()},
          {"perplexity", usage.perplexity()},
          {"temperature", temperature(step)}};
}

std::vector<Sheet> DvaeTask::preview(int64_t step) {
  const c10::NoGradGuard no_grad;
  const data::Dataset& shown = validation_ ? *validation_ : dataset_;
  const int64_t count = std::min<int64_t>(8, shown.size());
  const auto batch = data::load_range(shown, config_.data, config_.model.image_size, 0, count);
  const Tensor pixels = to_unit_range(batch.images, device_);
  const Tensor logits = model_.encode_logits(pixels);
  const Tensor relaxed =
      layers::gumbel_softmax(logits, gumbel(batch.positions, Purpose::kEvaluation), temperature(step));
  const std::vector<generation::SheetRow> rows{
      {"original", generation::make_cells(pixels)},
      {"relaxed, temperature " + short_number(temperature(step)),
       generation::make_cells(layers::reconstruction_from_stats(model_.decode_stats(relaxed)))},
      {"argmax codes", generation::make_cells(model_.decode(layers::argmax_codes(logits)))}};
  const std::string title =
      std::string(validation_ ? "validation" : "training") + " pictures at step " + std::to_string(step);
  return {{"reconstructions", generation::labelled_rows(rows, {.title = title})}};
}

Sheet DvaeTask::input_sheet(const PreparedBatch& batch) {
  return captioned_sheet("inputs", batch, "what the dVAE sees first");
}

}  // namespace dalle::training

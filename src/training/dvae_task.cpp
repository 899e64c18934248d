#include "dalle/training/dvae_task.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "dalle/training/dvae_evaluation.h"
#include "dalle/training/dvae_health.h"
#include "dalle/training/dvae_relaxation.h"
#include "dalle/training/task_support.h"

namespace dalle::training {
namespace {

models::DvaeCompute compute_of(const DvaeTraining& config, at::Device device) {
  const at::ScalarType dtype = compute_dtype(config.precision, device);
  return {dtype, dtype == at::kDouble ? dtype : compute_dtype(config.relaxation_precision, device)};
}

bool moves_codebook(const DvaeTraining& config) {
  const auto& freeze = config.trainer.freeze;
  return config.model.quantizer == models::Quantizer::kVq &&
         std::none_of(freeze.begin(), freeze.end(), [](const std::string& prefix) {
           return std::string_view("quantizer.codebook").starts_with(prefix);
         });
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
      model_(config.model, compute_of(config, device)),
      batch_usage_(config.model.vocab_size) {
  if (config.precision == Precision::kF64) model_.set_parameter_type(at::kDouble);
  const int64_t grid = config.model.grid_size();
  if (moves_codebook(config)) {
    codebook_.emplace(config.vector_quantizer, static_cast<uint64_t>(config.trainer.seed), config.trainer.batch_size,
                      grid * grid);
  }
}

std::string DvaeTask::model_config_yaml() const { return config::emit_yaml(config::dump(config_.model)); }

std::string DvaeTask::data_plan() const { return plan_of(dataset_); }
std::string DvaeTask::validation_plan() const { return validation_ ? plan_of(*validation_) : ""; }

std::unique_ptr<data::BatchStream> DvaeTask::make_loader(int64_t micro_batch_size, int64_t start_position) {
  return std::make_unique<data::Loader>(
      dataset_, config_.data,
      loader_options(config_.trainer, config_.model.image_size, micro_batch_size, start_position, ranks()));
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
  if (config_.model.quantizer == models::Quantizer::kVq) return {};
  return {{"temperature", temperature(step)}, {"kl_weight", kl_weight(step)}};
}

Tensor DvaeTask::nll_share(const PreparedBatch& batch, const Tensor& stats_B6HW, const StepContext& context) const {
  const double sub_pixels = static_cast<double>(3 * config_.model.image_size * config_.model.image_size);
  return layers::pixel_nll(config_.model.likelihood, batch.pixels, stats_B6HW, config_.relaxation.min_log_scale)
             .flatten(1)
             .sum(1)
             .sum() /
         (context.totals[0] * sub_pixels);
}

void DvaeTask::count_codes(const Tensor& codes_BHW, int64_t step) {
  if (step != counted_step_) batch_usage_ = evaluation::CodeUsage(config_.model.vocab_size);
  counted_step_ = step;
  batch_usage_.add(codes_BHW);
}

StepOutput DvaeTask::training_step(const PreparedBatch& batch, const StepContext& context) {
  return model_.quantizer == nullptr ? relaxed_step(batch, context) : quantized_step(batch, context);
}

StepOutput DvaeTask::relaxed_step(const PreparedBatch& batch, const StepContext& context) {
  const Tensor logits = model_.encode_logits(batch.pixels, *context.runner);
  const layers::Relaxation relaxed = relax_codes(logits, batch.batch.positions,
                                                 {.seed = static_cast<uint64_t>(config_.trainer.seed),
                                                  .purpose = Purpose::kGumbel,
                                                  .temperature = temperature(context.step),
                                                  .straight_through = config_.relaxation.straight_through});
  const Tensor nll = nll_share(batch, model_.decode_stats(relaxed.codes_BVHW, *context.runner), context);
  const Tensor kl = relaxed.kl_BHW.mean({1, 2}).sum() / context.totals[0];
  const double coefficient = kl_coefficient(config_.relaxation.kl_normalization, kl_weight(context.step),
                                            config_.model.grid_size(), config_.model.image_size);
  if (context.is_logged) count_codes(model_.codes_of(logits.detach()), context.step);
  return {.loss = nll + kl * coefficient, .metrics = {{"nll", nll}, {"kl", kl}}};
}

StepOutput DvaeTask::quantized_step(const PreparedBatch& batch, const StepContext& context) {
  const Tensor vectors = model_.encode_logits(batch.pixels, *context.runner);
  const layers::Quantized quantized = model_.quantizer->forward(vectors);
  if (codebook_) {
    codebook_->add(*model_.quantizer, vectors, quantized.codes_BHW, batch.batch.positions, context.step);
  }
  const Tensor nll = nll_share(batch, model_.decode_stats(quantized.vectors_BDHW, *context.runner), context);
  const double numbers =
      static_cast<double>(vectors.numel() / vectors.size(0));  // that the encoder gives for a picture
  const Tensor commitment = quantized.commitment / (context.totals[0] * numbers);
  if (context.is_logged) count_codes(quantized.codes_BHW, context.step);
  return {.loss = nll + commitment * config_.vector_quantizer.commitment_weight,
          .metrics = {{"nll", nll}, {"commitment", commitment}}};
}

void DvaeTask::after_update(const Tensor& skip) {
  if (codebook_) codebook_->update(*model_.quantizer, ranks(), skip);
}

Metrics DvaeTask::batch_values() {
  ranks().all_reduce_sum(batch_usage_.counts());
  return {{"batch_codes_used", batch_usage_.share_used()}, {"batch_perplexity", batch_usage_.perplexity()}};
}

Metrics DvaeTask::evaluate(int64_t step, layers::BlockRunner& runner) {
  return validation_ ? evaluate_dvae(model_, config_, *validation_, temperature(step), ranks(), runner) : Metrics{};
}

std::vector<std::string> validation_names(const DvaeTraining& config) {
  return config.validation.sources.empty() ? std::vector<std::string>{} : dvae_metric_names(config.model);
}

std::vector<Sheet> DvaeTask::preview(int64_t step) {
  const std::string title =
      std::string(validation_ ? "validation" : "training") + " pictures at step " + std::to_string(step);
  return {reconstruction_sheet(model_, config_, validation_ ? *validation_ : dataset_, temperature(step), title)};
}

Sheet DvaeTask::input_sheet(const PreparedBatch& batch) {
  return captioned_sheet("inputs", batch, "what the dVAE sees first");
}

std::vector<HealthRule> DvaeTask::health_rules() const { return dvae_health_rules(config_); }

}  // namespace dalle::training

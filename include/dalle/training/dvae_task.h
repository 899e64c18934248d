// Stage 1: the evidence lower bound of the dVAE (paper 2.1, A.2, A.3), relaxed for training, true for validation; or, with
// quantizer vq, VQ-VAE's loss around the same encoder, decoder and likelihood.
#pragma once

#include <optional>

#include "dalle/evaluation/code_usage.h"
#include "dalle/models/dvae.h"
#include "dalle/training/codebook_trainer.h"
#include "dalle/training/config.h"
#include "dalle/training/task.h"

namespace dalle::training {

/// The coefficient on the mean KL of a position: the weight itself, or weight * positions / sub-pixels (6.6 / 192).
double kl_coefficient(KlNormalization normalization, double weight, int64_t grid_size, int64_t image_size);

/// The names that DvaeTask::evaluate() gives.
std::vector<std::string> validation_names(const DvaeTraining& config);

class DvaeTask : public TrainingTask {
 public:
  DvaeTask(const DvaeTraining& config, at::Device device);

  std::string kind() const override { return "dvae"; }
  layers::Module& module() override { return model_; }
  std::string model_config_yaml() const override;
  at::Device device() const override { return device_; }
  std::string data_plan() const override;
  std::string validation_plan() const override;
  std::unique_ptr<data::BatchStream> make_loader(int64_t micro_batch_size, int64_t start_position) override;
  PreparedBatch prepare(data::Batch batch, const StepContext& context) override;
  std::vector<double> counts(const PreparedBatch& batch) const override;
  StepOutput training_step(const PreparedBatch& batch, const StepContext& context) override;
  void after_update(const Tensor& skip) override;
  Metrics batch_values() override;
  Metrics schedule_values(int64_t step) const override;
  Metrics evaluate(int64_t step, layers::BlockRunner& runner) override;
  std::vector<std::string> validation_names() const override { return training::validation_names(config_); }
  std::vector<Sheet> preview(int64_t step) override;
  Sheet input_sheet(const PreparedBatch& batch) override;
  std::vector<HealthRule> health_rules() const override;
  std::pair<std::string, int64_t> throughput_unit() const override { return {"images", 1}; }

 private:
  double temperature(int64_t step) const;
  double kl_weight(int64_t step) const;
  /// The bound with relaxed codes, in nats per sub-pixel.
  StepOutput relaxed_step(const PreparedBatch& batch, const StepContext& context);
  /// -ln p with the nearest codes, and the commitment of the encoder to them.
  StepOutput quantized_step(const PreparedBatch& batch, const StepContext& context);
  /// This micro-batch's share of the mean of -ln p over the global batch's sub-pixels.
  Tensor nll_share(const PreparedBatch& batch, const Tensor& stats_B6HW, const StepContext& context) const;
  void count_codes(const Tensor& codes_BHW, int64_t step);

  DvaeTraining config_;
  at::Device device_;
  data::Dataset dataset_;
  std::unique_ptr<data::Dataset> validation_;
  models::Dvae model_;
  std::optional<CodebookTrainer> codebook_;  // vq, unless frozen
  evaluation::CodeUsage batch_usage_;        // of the step in counted_step_
  int64_t counted_step_ = -1;
};

}  // namespace dalle::training

// Stage 2: cross-entropy of caption and image tokens (paper 2.2: weights 1/8 and 7/8). The frozen dVAE encodes on line,
// since the stage-2 augmentation changes the tokens of a picture from epoch to epoch, or its tokens are read from shards.
#pragma once

#include <optional>

#include "dalle/models/load.h"
#include "dalle/models/prior.h"
#include "dalle/text/caption_encoder.h"
#include "dalle/training/config.h"
#include "dalle/training/prior_evaluation.h"
#include "dalle/training/prior_preview.h"
#include "dalle/training/prior_source.h"
#include "dalle/training/task.h"
#include "dalle/training/token_cache.h"

namespace dalle::training {

/// The types that a prior is trained in. fp16 works on a CPU too, slowly, for checks.
models::PriorCompute prior_compute(const PriorTraining& config, at::Device device);

/// The names that PriorTask::evaluate() gives.
std::vector<std::string> validation_names(const PriorTraining& config);

class PriorTask : public TrainingTask {
 public:
  PriorTask(const PriorTraining& config, at::Device device);

  std::string kind() const override { return "prior"; }
  layers::Module& module() override { return model_; }
  std::string model_config_yaml() const override;
  at::Device device() const override { return device_; }
  std::string data_plan() const override { return data_.plan(); }
  std::string validation_plan() const override { return validation_ ? validation_->plan() : ""; }
  /// Captions are cut into pieces with BPE dropout, and replaced by the null caption (all pads) with caption_dropout; that
  /// by (seed, sample, epoch), this by (seed, position).
  std::unique_ptr<data::BatchStream> make_loader(int64_t micro_batch_size, int64_t start_position) override;
  PreparedBatch prepare(data::Batch batch, const StepContext& context) override;
  /// Text targets, image targets.
  std::vector<double> counts(const PreparedBatch& batch) const override;
  StepOutput training_step(const PreparedBatch& batch, const StepContext& context) override;
  Metrics schedule_values(int64_t) const override { return {}; }
  Metrics evaluate(int64_t step, layers::BlockRunner& runner) override;
  std::vector<std::string> validation_names() const override { return training::validation_names(config_); }
  /// The image loss of each position in the last validation.
  std::vector<Sheet> validation_sheets(int64_t step) override;
  bool previews_with_validation() const override { return true; }
  bool has_previews() const override;
  std::vector<Sheet> preview(int64_t step) override;
  Sheet input_sheet(const PreparedBatch& batch) override;
  std::pair<std::string, int64_t> throughput_unit() const override {
    return {"tokens", config_.model.layout().length()};
  }
  TrainingCost cost() const override { return cost_; }
  bool needs_gradient_scaling() const override { return model_.compute().dtype == at::kHalf; }
  std::optional<at::ScalarType> resblock_matrix_type() const override { return model_.compute().dtype; }
  std::map<std::string, std::string> identities() const override;
  std::string tokenizer_bytes() const override { return encoder_.tokenizer().model_bytes(); }

  /// Only where the config names one, which it must to train on pictures.
  const models::Dvae& dvae() const;

 private:
  text::EncodedCaption training_caption(std::string_view caption, const data::SampleVisit& visit) const;
  Tensor caption_ids(const std::vector<std::string>& captions) const;
  /// int64 [B, I] on the device, encoded anew.
  Tensor image_tokens(const data::Batch& batch) const;
  int64_t image_size() const;
  /// Over the first `count` samples, read in order.
  PriorLosses losses_over(const PriorSource& source, int64_t count, layers::BlockRunner& runner) const;
  Sheet samples_of(const PriorSource& source, const std::string& name, int64_t step) const;
  Sheet draw_samples(const std::vector<PreviewCaption>& rows, const std::string& name, const std::string& title) const;

  PriorTraining config_;
  at::Device device_;
  PriorSource data_;
  std::unique_ptr<PriorSource> validation_;
  std::optional<models::Loaded<models::Dvae>> dvae_;
  text::CaptionEncoder encoder_;
  models::Prior model_;
  TokenCache tokens_;  // of training pictures, where augmentation leaves them as they are
  TrainingCost cost_;
  std::optional<PriorLosses> last_losses_;  // of the last validation, for its picture
};

}  // namespace dalle::training

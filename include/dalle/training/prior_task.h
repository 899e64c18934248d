// Stage 2: cross-entropy of caption and image tokens (paper 2.2: weights 1/8 and 7/8), with the dVAE frozen and encoding
// on line, since the stage-2 augmentation changes the tokens of a picture from epoch to epoch.
#pragma once

#include "dalle/models/load.h"
#include "dalle/models/prior.h"
#include "dalle/text/caption_encoder.h"
#include "dalle/training/config.h"
#include "dalle/training/task.h"

namespace dalle::training {

class PriorTask : public TrainingTask {
 public:
  PriorTask(const PriorTraining& config, at::Device device);

  std::string kind() const override { return "prior"; }
  layers::Module& module() override { return model_; }
  std::string model_config_yaml() const override;
  at::Device device() const override { return device_; }
  std::unique_ptr<data::Loader> make_loader(int64_t micro_batch_size, int64_t start_position) override;
  PreparedBatch prepare(data::Batch batch, const StepContext& context) override;
  /// Text targets, image targets.
  std::vector<double> counts(const PreparedBatch& batch) const override;
  StepOutput training_step(const PreparedBatch& batch, const StepContext& context) override;
  Metrics schedule_values(int64_t) const override { return {}; }
  Metrics evaluate(int64_t step) override;
  std::vector<Sheet> preview(int64_t step) override;
  Sheet input_sheet(const PreparedBatch& batch) override;
  std::pair<std::string, int64_t> throughput_unit() const override {
    return {"tokens", config_.model.layout().length()};
  }
  std::map<std::string, std::string> identities() const override;
  std::string tokenizer_bytes() const override { return encoder_.tokenizer().model_bytes(); }
  std::string closing_note() const override;

  const models::Dvae& dvae() const { return *dvae_.model; }

 private:
  Tensor caption_ids(const std::vector<std::string>& captions) const;
  /// Mean nats per token over the first `count` samples, read in order.
  std::pair<double, double> losses_over(const data::Dataset& dataset, int64_t count) const;

  PriorTraining config_;
  at::Device device_;
  data::Dataset dataset_;
  std::unique_ptr<data::Dataset> validation_;
  models::Loaded<models::Dvae> dvae_;
  text::CaptionEncoder encoder_;
  models::Prior model_;
};

}  // namespace dalle::training

// Contrastive training of CLIP on the same pairs, for reranking.
#pragma once

#include <optional>

#include "dalle/models/clip.h"
#include "dalle/models/load.h"
#include "dalle/text/text_tokenizer.h"
#include "dalle/training/config.h"
#include "dalle/training/contrastive_step.h"
#include "dalle/training/task_support.h"

namespace dalle::training {

/// The names that ClipTask::evaluate() gives.
std::vector<std::string> validation_names(const ClipTraining& config);

class ClipTask : public TrainingTask {
 public:
  ClipTask(const ClipTraining& config, at::Device device);

  std::string kind() const override { return "clip"; }
  layers::Module& module() override { return model_; }
  std::string model_config_yaml() const override;
  at::Device device() const override { return device_; }
  std::string data_plan() const override { return plan_of(dataset_); }
  std::string validation_plan() const override { return validation_ ? plan_of(*validation_) : ""; }
  std::unique_ptr<data::BatchStream> make_loader(int64_t micro_batch_size, int64_t start_position) override;
  /// Keeps the pictures as bytes, and tokens of those that are seen through the dVAE: with gradient caching a batch has many
  /// times those that are computed with at a time.
  PreparedBatch prepare(data::Batch batch, const StepContext& context) override;
  /// What the model sees of a batch, f32 [B, 3, S, S]: pictures shifted, a share of them replaced by the dVAE's reconstruction.
  Tensor pixels(const PreparedBatch& batch) const;
  std::vector<double> counts(const PreparedBatch& batch) const override;
  /// Of more than one micro-batch: makes their features without gradients, for gradient caching.
  void begin_step(const std::vector<PreparedBatch>& batches, const StepContext& context) override;
  StepOutput training_step(const PreparedBatch& batch, const StepContext& context) override;
  /// Keeps logit_scale within [0, ln 100] (Radford et al. 2021, 2.5), so that its gradient never vanishes at the end.
  void after_update(const Tensor& skip) override;
  Metrics schedule_values(int64_t) const override { return {}; }
  /// Retrieval among 100 training pairs and among the validation pairs.
  Metrics evaluate(int64_t step, layers::BlockRunner& runner) override;
  std::vector<std::string> validation_names() const override { return training::validation_names(config_); }
  bool has_previews() const override { return false; }
  std::vector<Sheet> preview(int64_t step) override;
  Sheet input_sheet(const PreparedBatch& batch) override;
  std::pair<std::string, int64_t> throughput_unit() const override { return {"pairs", 1}; }
  std::optional<at::ScalarType> resblock_matrix_type() const override { return model_.compute_dtype(); }
  std::map<std::string, std::string> identities() const override;
  std::string tokenizer_bytes() const override { return tokenizer_.model_bytes(); }

 private:
  /// Pictures of a batch that are replaced by the dVAE's reconstruction.
  std::vector<int64_t> rows_through_dvae(const data::Batch& batch) const;
  /// u8 pictures as f32 in [0, 1], each moved by its own offset.
  Tensor shifted_pixels(const Tensor& images, const std::vector<int64_t>& positions) const;
  /// Retrieval among the first `count` pairs, whose features the ranks make together.
  void add_retrieval(const data::Dataset& dataset, int64_t count, const std::string& prefix,
                     layers::BlockRunner& runner, Metrics& metrics) const;

  ClipTraining config_;
  at::Device device_;
  data::Dataset dataset_;
  std::unique_ptr<data::Dataset> validation_;
  text::TextTokenizer tokenizer_;
  std::optional<models::Loaded<models::Dvae>> dvae_;
  models::Clip model_;
  // Of the step that is being computed.
  std::optional<ContrastiveStep> cached_;
  size_t next_micro_batch_ = 0;
  size_t num_micro_batches_ = 1;
};

}  // namespace dalle::training

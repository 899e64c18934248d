// A stage of training as the loop sees it: which parameters, what a micro-batch costs, how to validate and what to show.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "dalle/data/loader.h"
#include "dalle/distributed/communicator.h"
#include "dalle/generation/contact_sheet.h"
#include "dalle/layers/block_runner.h"
#include "dalle/layers/module.h"
#include "dalle/training/health.h"
#include "dalle/training/metrics.h"

namespace dalle::training {

/// Named numbers in the order they are logged.
using Metrics = NamedValues;

/// What a training step knows of its surroundings.
struct StepContext {
  int64_t step = 0;            // updates done before this one
  std::vector<double> totals;  // counts() summed over the whole global batch
  layers::BlockRunner* runner = nullptr;
  bool is_logged = false;  // a line of the log follows: what is only for the log may be computed
};

/// One micro-batch's share of the global batch's loss: shares add up to the loss. Metrics are shares as well.
struct StepOutput {
  Tensor loss;
  std::vector<std::pair<std::string, Tensor>> metrics;
};

/// What training costs, for the model FLOPs utilisation of the log.
struct TrainingCost {
  double flops_per_sample = 0;  // matrix work of a forward and backward pass; 0 where it is not known
  at::ScalarType dtype = at::kFloat;
};

/// A micro-batch after what needs no gradient (device transfer, encoding by a frozen dVAE) has been done.
struct PreparedBatch {
  data::Batch batch;
  /// f32 [B, 3, S, S] in [0, 1]. Undefined for CLIP, whose pictures stay bytes on the host (ClipTask::pixels()), and for the
  /// prior where tokens are known without them.
  Tensor pixels;
  Tensor tokens_BI;              // prior: image tokens; CLIP: those of the pictures that it sees through the dVAE
  int64_t num_text_targets = 0;  // prior: text positions with a loss, counted while the captions were on the host
};

struct Sheet {
  std::string name;  // file stem below samples/
  Tensor picture;    // u8 [H, W, 3]
};

class TrainingTask {
 public:
  virtual ~TrainingTask() = default;
  virtual std::string kind() const = 0;  // "dvae", "clip", "prior"
  virtual layers::Module& module() = 0;
  virtual std::string model_config_yaml() const = 0;
  virtual at::Device device() const = 0;

  /// The ranks that train together, until leave(); before and after, this process alone. See Membership.
  virtual void join(distributed::Communicator& ranks) { ranks_ = &ranks; }
  virtual void leave() { ranks_ = alone_.get(); }
  /// How many samples there are, and a hash by which ranks notice that they read different ones.
  virtual std::string data_plan() const { return ""; }
  /// The same of the validation data; "" without any.
  virtual std::string validation_plan() const { return ""; }

  /// Opens this rank's share of the training data, micro_batch_size samples at a time, from a global sample position on.
  virtual std::unique_ptr<data::BatchStream> make_loader(int64_t micro_batch_size, int64_t start_position) = 0;
  virtual PreparedBatch prepare(data::Batch batch, const StepContext& context) = 0;
  /// What losses divide by, counted over one micro-batch: summed over the global batch before any backward. Must not wait
  /// for the device, as nothing in a step may.
  virtual std::vector<double> counts(const PreparedBatch& batch) const = 0;
  /// Before a step's first training_step(), with all its micro-batches in their order: for losses that compare samples
  /// of the whole global batch.
  virtual void begin_step(const std::vector<PreparedBatch>& /*batches*/, const StepContext& /*context*/) {}
  virtual StepOutput training_step(const PreparedBatch& batch, const StepContext& context) = 0;
  /// After each update of the weights and before it is averaged: moves what no gradient moves (a codebook), unless `skip`,
  /// an f32 scalar on the task's device that the host has not read, is 1: then the update was skipped.
  virtual void after_update(const Tensor& /*skip*/) {}
  /// Values of the last step's whole batch that are not sums over its parts; asked for after steps with is_logged, on
  /// every rank.
  virtual Metrics batch_values() { return {}; }
  /// Values that the schedules of this stage have at `step`, for the log (temperature, kl weight).
  virtual Metrics schedule_values(int64_t step) const = 0;

  /// Over the validation data, shared out among the ranks; empty without any, and the same on every rank. Runs with the
  /// averaged weights in place, through `runner`, which needs all ranks for each block: they make as many passes in the same
  /// order (see own_batches).
  virtual Metrics evaluate(int64_t step, layers::BlockRunner& runner) = 0;
  /// The names that evaluate() gives.
  virtual std::vector<std::string> validation_names() const = 0;
  /// Pictures of what the last evaluate() found, for samples/.
  virtual std::vector<Sheet> validation_sheets(int64_t /*step*/) { return {}; }
  /// Whether preview() is asked for at every validation too, not only every trainer.preview_interval_steps.
  virtual bool previews_with_validation() const { return false; }
  /// Whether preview() gives any.
  virtual bool has_previews() const { return true; }
  /// Pictures for samples/, on rank 0 alone. Runs with the averaged weights in place.
  virtual std::vector<Sheet> preview(int64_t step) = 0;
  /// Exactly what the model sees: the first batch, with token pieces where there is text.
  virtual Sheet input_sheet(const PreparedBatch& batch) = 0;

  /// "images" or "tokens", and how many of them a sample is, for the speed display.
  virtual std::pair<std::string, int64_t> throughput_unit() const = 0;
  virtual TrainingCost cost() const { return {}; }
  /// Whether the model's resblocks compute in fp16, whose gradients need scales of their own (paper 2.4).
  virtual bool needs_gradient_scaling() const { return false; }
  /// The type that matrices of resblocks are rounded to before each use; none where they are used as they are.
  virtual std::optional<at::ScalarType> resblock_matrix_type() const { return {}; }
  /// Identities of other models this one depends on (dvae, tokenizer).
  virtual std::map<std::string, std::string> identities() const { return {}; }
  /// Bytes of the tokenizer that belongs to the model, or "".
  virtual std::string tokenizer_bytes() const { return ""; }
  /// Numbers of this stage that should stay within a range, and what to do where they do not.
  virtual std::vector<HealthRule> health_rules() const { return {}; }

 protected:
  distributed::Communicator& ranks() const { return *ranks_; }

 private:
  std::unique_ptr<distributed::Communicator> alone_ = distributed::make_singleton();
  distributed::Communicator* ranks_ = alone_.get();
};

/// A task among ranks for as long as this lives; both must outlive it.
class Membership {
 public:
  Membership(TrainingTask& task, distributed::Communicator& ranks) : task_(task) { task_.join(ranks); }
  ~Membership() { task_.leave(); }
  Membership(const Membership&) = delete;
  Membership& operator=(const Membership&) = delete;

 private:
  TrainingTask& task_;
};

}  // namespace dalle::training

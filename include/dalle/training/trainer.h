// THE training loop, the same for every stage: accumulate, reduce, clip, finite check, step, average, log, save.
// Everything random is a function of (seed, step, sample), so the whole state of a run is: parameters, averaged
// parameters, optimizer moments and the step. Resuming on the same machine, binary and threads is bitwise.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "dalle/cli/status_line.h"
#include "dalle/distributed/communicator.h"
#include "dalle/distributed/gradient_reducer.h"
#include "dalle/layers/checkpoint_runner.h"
#include "dalle/optim/adamw.h"
#include "dalle/optim/ema.h"
#include "dalle/optim/schedule.h"
#include "dalle/storage/checkpoint.h"
#include "dalle/training/checkpoint_writer.h"
#include "dalle/training/config.h"
#include "dalle/training/finite_check.h"
#include "dalle/training/gradient_scaling.h"
#include "dalle/training/health.h"
#include "dalle/training/learning_rate.h"
#include "dalle/training/metrics.h"
#include "dalle/training/run_directory.h"
#include "dalle/training/sharded_model.h"
#include "dalle/training/task.h"
#include "dalle/training/tensorboard.h"

namespace dalle::training {

struct TrainerSetup {
  TrainerConfig trainer;
  optim::AdamWConfig optimizer;
  optim::ScheduleConfig learning_rate;
  std::string resolved_config;
  bool resume = false;
  std::filesystem::path checkpoint;  // to resume from; empty: the latest good one
  // Throws ConfigError where a checkpoint's config (YAML, of `place`) differs in a key that can't change; unset: not looked at.
  std::function<void(const std::string& saved_config, const std::string& place)> require_resumable;
  double matrix_speed = 0;  // measured FLOP/s that utilisation is a share of; 0: not reported
  // Steps by which the host lags behind in learning of skipped updates; unset: as the device needs.
  std::optional<int64_t> finite_check_delay;
};

class Trainer {
 public:
  /// Materialises and initialises the task's model, from trainer.init_from where that is set, and joins the task to the
  /// ranks of `communicator`. Throws ConfigError before anything is written.
  Trainer(TrainerSetup setup, TrainingTask& task, distributed::Communicator& communicator);
  ~Trainer();

  /// Trains to num_steps. Returns true when done, false when a signal, to this rank or another, stopped the run after
  /// saving. Only rank 0 writes into the directory.
  /// Throws Error when the numbers fail (after saving), the data are too bad or a file can't be written.
  bool run(RunDirectory& directory);

  int64_t step() const { return step_; }

 private:
  void start();
  void restore();
  void initialize_from(const std::filesystem::path& given);
  std::vector<PreparedBatch> next_batches();
  void train_step();
  /// What the optimizer updates: the parameters, or this rank's pieces of them.
  const std::vector<layers::NamedParameter>& trained() const { return sharded_ ? sharded_->pieces() : parameters_; }
  optim::GradientNorms gradient_norms() {
    return sharded_ ? sharded_->gradient_norms() : optim::gradient_norms(parameters_);
  }
  void accumulate(const std::vector<PreparedBatch>& batches, const StepContext& context);
  /// What sums gradients over ranks, and what stands between them and the optimizer; and how blocks are run.
  void set_up_gradients();
  /// After the last backward pass: gradients become those of the global batch. Returns their norm where it is not that of
  /// gradient_norms().
  std::optional<Tensor> finish_gradients();
  bool is_first_rank() const { return communicator_.rank() == 0; }
  /// Tells the other ranks where this one is.
  void note(const std::string& place, distributed::Pace pace = distributed::Pace::kSteady);
  /// Sums over ranks what a step must know before its backward passes: what losses divide by (into `context`), captions
  /// and bad samples so far, and whether a signal has come to any rank.
  void agree_on_step(const std::vector<PreparedBatch>& batches, StepContext& context);
  bool must_stop() const;
  /// The losses of step_metrics_, summed over ranks.
  void reduce_losses();
  /// Throws Error, naming a rank, where weights, averages, moments or the step are not the same on all ranks.
  void require_same_state();
  UpdateNumbers update_numbers(const std::vector<PreparedBatch>& batches, optim::GradientNorms gradients) const;
  /// Counts and reports every skipped update before step_. To be called before anything that shows or saves the counts.
  void settle_updates();
  /// Throws where this is one skipped update too many in a row, after saving.
  void report_skipped(const SkippedUpdate& skipped);
  void raise(int64_t step, const HealthEvent& event);
  void write_line(const std::string& phase, const NamedValues& values);
  void after_step();
  void log_step(double learning_rate, const Tensor& norm, const std::vector<optim::BlockNorm>& block_norms);
  void record_schedule(const ScheduleEvent& event);
  /// Differences between the config that a checkpoint was saved with and this run's, as lines of phase "config".
  void record_config_changes(const std::string& saved_config);
  /// Model FLOPs utilisation at this many items a second, or nothing where it cannot be told.
  std::optional<double> utilisation(double items_per_second) const;
  /// A line for the log: where the time since the last such line went.
  void report_speed();
  /// The numbers of the validation, if any.
  Metrics validate_and_preview(bool validate, bool preview);
  Metrics validation(layers::BlockRunner& runner);
  void draw(bool of_validation, bool previews);
  void write_sheet(const Sheet& sheet);
  void save();
  /// On all ranks, once all are known to hold the same. Goes to disk in the background; what fails there is thrown by
  /// a later step, save or settle_checkpoint().
  void write_checkpoint();
  void start_checkpoint(const std::vector<storage::TensorPiece>& gradients);
  void start_checkpoint_parts(std::vector<storage::TensorPiece> gradients);
  /// On all ranks: collects what each has written and, on rank 0, starts to finish it. Throws FileError, naming the rank,
  /// where one has failed.
  void join_checkpoint_parts();
  /// On all ranks: returns once the last checkpoint is in its place.
  void settle_checkpoint();
  /// All of a checkpoint but its tensors.
  storage::Checkpoint checkpoint_texts() const;
  void leave_later_checkpoints() const;
  void restore_parts(const std::filesystem::path& folder);
  /// What set_up_gradients() made has of a state, for a checkpoint's optimizer part. Every rank must call it.
  std::vector<storage::TensorPiece> gradient_state() const;
  /// Takes such a state, and out of `state`.
  void load_gradient_state(std::vector<storage::NamedTensor>& state);
  /// The scales of a checkpoint, or none: a run may go on in another precision.
  void load_scales(const std::vector<storage::NamedTensor>& state);
  bool is_due(int64_t interval) const { return interval > 0 && step_ % interval == 0; }
  /// Whether the step that ends with `step` updates done is logged.
  bool is_logged(int64_t step) const;

  TrainerSetup setup_;
  TrainingTask& task_;
  RunDirectory* run_ = nullptr;
  distributed::Communicator& communicator_;
  const Membership membership_;
  std::vector<layers::NamedParameter> parameters_;  // of the module
  std::unique_ptr<ShardedModel> sharded_;           // where ranks split it
  optim::AdamW optimizer_;
  LearningRate learning_rate_;
  std::optional<optim::Ema> ema_;
  std::unique_ptr<distributed::GradientReducer> reducer_;  // of several ranks that split and compress nothing
  std::unique_ptr<GradientCompression> compression_;
  std::unique_ptr<GradientScaling> scaling_;  // of resblocks in fp16
  std::unique_ptr<data::BatchStream> loader_;
  std::unique_ptr<TensorBoardWriter> tensorboard_;  // this and the next two: rank 0 alone
  std::unique_ptr<MetricsWriter> metrics_;
  std::unique_ptr<cli::StatusLine> status_;
  layers::CheckpointRunner checkpoint_runner_;
  layers::BlockRunner* runner_ = &layers::plain_runner();  // of a step's blocks
  Throughput throughput_;                                  // since the last line of metrics.jsonl
  TimeSpent unreported_;                                   // of the lines since the last report_speed()
  int64_t reported_step_ = 0;
  std::vector<PreparedBatch> kept_batches_;  // overfit_one_batch
  std::vector<std::pair<std::string, Tensor>> step_metrics_;
  std::vector<Tensor> micro_losses_;  // of this step, to tell which micro-batch was bad
  HealthMonitor health_;
  std::string resumed_config_;  // of the checkpoint that this run goes on from
  FiniteCheck finite_check_;
  int64_t step_ = 0;
  int64_t saved_step_ = -1;
  /// A checkpoint whose parts the ranks are writing.
  struct PartsUnderWay {
    std::filesystem::path folder, begun;
    storage::Checkpoint texts;
  };
  std::optional<PartsUnderWay> parts_under_way_;
  CheckpointWriter writer_;
  bool has_begun_ = false;              // has read its first batch
  bool stop_agreed_ = false;            // a signal has come to some rank
  int64_t num_captions_ = 0;            // read since the start of the run, by all ranks
  int64_t num_truncated_captions_ = 0;  // of them
  int64_t num_bad_samples_ = 0;         // since this process started, of all ranks
};

}  // namespace dalle::training

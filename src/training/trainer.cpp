#include "dalle/training/trainer.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>

#include "dalle/core/error.h"
#include "dalle/core/logging.h"
#include "dalle/core/number_text.h"
#include "dalle/core/signals.h"
#include "dalle/core/str.h"
#include "dalle/distributed/launch_environment.h"
#include "dalle/optim/gradients.h"
#include "dalle/optim/parameter_groups.h"
#include "dalle/training/profiler.h"
#include "dalle/training/task_support.h"

namespace dalle::training {
namespace {

// Parameters on their device with values, before the optimizer and the average look at them. Those that ranks split get
// theirs later, a unit at a time.
std::vector<layers::NamedParameter> ready_parameters(const TrainerSetup& setup, TrainingTask& task, int64_t ranks) {
  layers::Module& module = task.module();
  if (!setup.trainer.is_sharded(ranks)) {
    module.materialize(task.device());
    module.initialize(static_cast<uint64_t>(setup.trainer.seed));
  }
  freeze(module, setup.trainer.freeze);
  return module.named_parameters();
}

/// Ranks of a machine, where the launcher says it; else all of them.
int64_t ranks_of_machine(int64_t world_size) {
  const auto environment = distributed::read_launch_environment();
  return environment.world_size == world_size ? environment.local_size.value_or(world_size) : world_size;
}

std::unique_ptr<ShardedModel> shard(const TrainerConfig& trainer, TrainingTask& task,
                                    distributed::Communicator& communicator) {
  const int64_t ranks = communicator.world_size();
  if (!trainer.is_sharded(ranks)) return nullptr;
  int64_t group_size = ranks;
  if (trainer.sharding == Sharding::kHybrid) {
    group_size = trainer.shard_group_size > 0 ? trainer.shard_group_size : ranks_of_machine(ranks);
    if (group_size > ranks || ranks % group_size != 0) {
      throw ConfigError(Problem{"trainer.shard_group_size", str("a divisor of the ", ranks, " ranks"), str(group_size),
                                "ranks are shared out in groups of this size that follow each other"});
    }
  }
  const UnitForm form{.cut = trainer.gradient_compression.enabled ? UnitCut::kMatrices : UnitCut::kStretch,
                      .matrix_type = task.resblock_matrix_type()};
  return std::make_unique<ShardedModel>(task.module(), task.device(), static_cast<uint64_t>(trainer.seed),
                                        trainer.sharding, group_size, communicator, form);
}

}  // namespace

Trainer::Trainer(TrainerSetup setup, TrainingTask& task, distributed::Communicator& communicator)
    : setup_(std::move(setup)),
      task_(task),
      communicator_(communicator),
      membership_(task, communicator),
      parameters_(ready_parameters(setup_, task, communicator.world_size())),
      sharded_(shard(setup_.trainer, task, communicator)),
      optimizer_(trained(), setup_.optimizer),
      learning_rate_(setup_.learning_rate),
      health_(setup_.trainer.health, task.health_rules()),
      finite_check_(setup_.finite_check_delay.value_or(FiniteCheck::default_delay(task.device()))) {
  const auto& trainer = setup_.trainer;
  trainer.require_shares(communicator.world_size());
  if (learning_rate_.watches_validation() && trainer.validation_interval_steps == 0) {
    throw ConfigError(Problem{"trainer.validation_interval_steps", "an interval, for learning_rate.plateau to watch",
                              "0", "set it, or learning_rate.plateau.patience_steps: 0"});
  }
  learning_rate_.require_metric(task.validation_names());
  if (trainer.ema_decay > 0) {
    ema_.emplace(sharded_ ? sharded_->parts() : parameters_, trainer.ema_decay, trainer.ema_interval_steps);
  }
  if (!setup_.resume && !trainer.init_from.empty()) initialize_from(trainer.init_from);
  set_up_gradients();
}

Trainer::~Trainer() = default;

void Trainer::start() {
  if (setup_.resume) {
    restore();
    log_info(str("resuming at step ", step_));
  }
  require_same_state();
  if (is_first_rank()) {
    if (setup_.resume) {
      leave_later_checkpoints();
      run_->cut_metrics_after(step_);
    }
    tensorboard_ = std::make_unique<TensorBoardWriter>(run_->tensorboard(), setup_.resume ? step_ : -1);
    metrics_ = std::make_unique<MetricsWriter>(run_->metrics_file(), tensorboard_.get());
    status_ =
        std::make_unique<cli::StatusLine>(task_.kind(), task_.throughput_unit().first, setup_.trainer.num_steps, step_);
  }
  // The one batch of an overfitting run is the first, also after a resume.
  const int64_t position = setup_.trainer.overfit_one_batch ? 0 : step_ * setup_.trainer.batch_size;
  loader_ = task_.make_loader(setup_.trainer.micro_size(communicator_.world_size()), position);
  if (sharded_) log_info(sharded_->describe());
  if (compression_) log_info(compression_->describe());
  if (scaling_) log_info(scaling_->describe());
  log_info(optim::describe(optim::parameter_groups(parameters_, setup_.optimizer.weight_decay)));
  if (!resumed_config_.empty()) record_config_changes(resumed_config_);
  reported_step_ = step_;
}

bool Trainer::run(RunDirectory& directory) {
  run_ = &directory;
  const StopSignals signals(/*announces=*/is_first_rank());
  start();
  const auto& trainer = setup_.trainer;
  Profiler profiler(is_first_rank() ? trainer.profile_from_step : -1, trainer.profile_num_steps,
                    run_->root() / "profile.json");
  throughput_.reset();
  if (setup_.resume && step_ >= trainer.num_steps) {
    log_info("this run has reached its last step; raise trainer.num_steps to go on");
    return true;
  }
  while (step_ < trainer.num_steps) {
    if (must_stop()) {
      if (status_) status_->finish();
      save();
      settle_checkpoint();
      log_info(str("stopped by a signal at step ", step_, "; continue with --resume=", run_->root().string()));
      return false;
    }
    profiler.before_step(step_);
    train_step();
    profiler.after_step(step_);
    after_step();
  }
  if (status_) status_->finish();
  save();
  settle_checkpoint();
  report_speed();
  if (num_truncated_captions_ > 0) {
    log_info(str(grouped_digits(num_truncated_captions_), " of ", grouped_digits(num_captions_),
                 " captions were longer than the model's text context and were cut"));
  }
  return true;
}

std::vector<PreparedBatch> Trainer::next_batches() {
  const auto& trainer = setup_.trainer;
  if (trainer.overfit_one_batch && !kept_batches_.empty()) return kept_batches_;
  const StepContext context{.step = step_, .totals = {}, .runner = nullptr};
  std::vector<PreparedBatch> batches;
  if (has_begun_) note("reading data");  // to open it may take any time
  has_begun_ = true;
  const int64_t ranks = communicator_.world_size();
  for (int64_t done = 0; done < trainer.batch_size; done += trainer.micro_size(ranks) * ranks) {
    throughput_.begin_wait();
    data::Batch batch = loader_->next();
    throughput_.end_wait();
    throughput_.begin_prepare();
    batches.push_back(task_.prepare(std::move(batch), context));
    throughput_.end_prepare();
  }
  if (trainer.overfit_one_batch) kept_batches_ = batches;
  return batches;
}

void Trainer::train_step() {
  const auto& trainer = setup_.trainer;
  const std::vector<PreparedBatch> batches = next_batches();
  if (step_ == 0 && is_first_rank()) write_sheet(task_.input_sheet(batches.front()));

  StepContext context{.step = step_, .totals = {}, .runner = runner_, .is_logged = is_logged(step_ + 1)};
  agree_on_step(batches, context);

  accumulate(batches, context);
  const std::optional<Tensor> known_norm = finish_gradients();
  reduce_losses();
  note("update");

  optim::GradientNorms norms = gradient_norms();
  const auto block_norms =
      context.is_logged ? optim::block_norms(norms) : std::vector<optim::BlockNorm>{};  // before clipping
  const Tensor norm = known_norm ? *known_norm : optim::global_norm(norms);
  const Tensor bad = finite_check_.judge(update_numbers(batches, std::move(norms)), norm);
  while (const auto skipped = finite_check_.next_due(step_)) report_skipped(*skipped);
  const UpdateSkips skips = scaling_ ? scaling_->finish_update(bad) : UpdateSkips{.all = bad, .each = {}};
  const double learning_rate = learning_rate_.at(step_);
  const auto halving = learning_rate_.listed_halving(step_);
  if (trainer.clip_norm > 0) optim::clip_by_global_norm(trained(), trainer.clip_norm, norm);
  optimizer_.step(learning_rate, skips.all, skips.each);
  if (sharded_) sharded_->after_update();
  task_.after_update(skips.all);
  ++step_;
  if (ema_) ema_->update(step_, skips.all);
  if (scaling_) scaling_->write_exponents(run_->exponents_file(), step_, is_first_rank());
  if (halving) record_schedule(*halving);
  throughput_.add_items(trainer.batch_size * task_.throughput_unit().second);
  if (context.is_logged) log_step(learning_rate, norm, block_norms);
  if (status_) status_->advance(step_);
}

bool Trainer::is_logged(int64_t step) const {
  const auto& trainer = setup_.trainer;
  return step % trainer.log_interval_steps == 0 || step == 1 || step == trainer.num_steps;
}

void Trainer::accumulate(const std::vector<PreparedBatch>& batches, const StepContext& context) {
  optimizer_.zero_grad();
  step_metrics_.clear();
  micro_losses_.clear();
  if (sharded_) sharded_->begin_step();
  const int64_t interval = setup_.trainer.exponent_histogram_interval_steps;
  if (scaling_) scaling_->begin_step(interval > 0 && (step_ + 1) % interval == 0);
  task_.begin_step(batches, context);
  for (size_t i = 0; i < batches.size(); ++i) {
    note(str("forward pass ", i + 1, " of ", batches.size()));
    const StepOutput output = task_.training_step(batches[i], context);
    const bool is_last = i + 1 == batches.size();
    if (sharded_) sharded_->begin_pass(is_last);
    if (reducer_ && is_last) reducer_->arm();
    if (compression_ && is_last) compression_->arm();
    note(str("backward pass ", i + 1, " of ", batches.size()));
    output.loss.backward();
    if (sharded_) sharded_->end_pass();
    micro_losses_.push_back(output.loss.detach());
    std::vector<std::pair<std::string, Tensor>> shares{{"loss", output.loss.detach()}};
    for (const auto& [name, value] : output.metrics) shares.emplace_back(name, value.detach());
    if (step_metrics_.empty()) {
      step_metrics_ = std::move(shares);
    } else {
      for (size_t k = 0; k < shares.size(); ++k) step_metrics_[k].second = step_metrics_[k].second + shares[k].second;
    }
  }
}

void Trainer::after_step() {
  const auto& trainer = setup_.trainer;
  const bool is_last = step_ == trainer.num_steps, validates = is_last || is_due(trainer.validation_interval_steps);
  const Metrics values = validate_and_preview(validates, is_last || is_due(trainer.preview_interval_steps));
  if (validates) {  // before the checkpoint, which has what it decides
    if (const auto event = learning_rate_.observe(step_, values)) record_schedule(*event);
  }
  if (is_due(trainer.checkpoint_interval_steps)) save();
}

}  // namespace dalle::training

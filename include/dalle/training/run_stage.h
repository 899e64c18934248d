// From a config to a finished run: device, data, model, run directory, loop. Shared by all train-* commands.
#pragma once

#include "dalle/cli/command.h"
#include "dalle/core/device.h"
#include "dalle/training/trainer.h"

namespace dalle::training {

/// Builds nothing but the model's shapes, on the meta device, and prints parameters, FLOPs and memory.
void check_dvae(const DvaeTraining& config, const cli::Invocation& call);
void check_clip(const ClipTraining& config, const cli::Invocation& call);
void check_prior(const PriorTraining& config, const cli::Invocation& call);

/// The model with what its config leaves to the tokenizer, the token set or the dVAE. A missing file that nothing is taken
/// from is only noted.
models::PriorConfig prior_with_sizes(const PriorTraining& config);

/// The ranks of this run, and where this one computes.
struct Ranks {
  std::unique_ptr<distributed::Communicator> communicator;
  at::Device device;
};

/// Joins the ranks that a launcher has started, which from then on watch over each other: where one is lost the others end
/// within the time, with exit code 1 (distributed::Watch). All but the first keep quiet on the console but for warnings and
/// errors, which name their rank.
Ranks join_ranks(const cli::Invocation& call, int64_t timeout_seconds);

/// What `body` returns, done as one of these ranks: the others learn of what it throws, and that this rank ends well.
int run_as_rank(distributed::Communicator& communicator, const std::function<int()>& body);

/// Makes sure that all ranks do the same, creates or opens the run directory, logs what will be done, trains, and returns
/// the exit code.
int run_task(TrainingTask& task, TrainerSetup setup, const cli::Invocation& call,
             distributed::Communicator& communicator);

/// The whole of a train-* command's run.
template <class Task, class Config>
int run_stage(const Config& config, const cli::Invocation& call) {
  const Ranks ranks = join_ranks(call, config.trainer.timeout_seconds);
  return run_as_rank(*ranks.communicator, [&] {
    Task task(config, ranks.device);
    return run_task(task,
                    {.trainer = config.trainer,
                     .optimizer = config.optimizer,
                     .learning_rate = config.learning_rate,
                     .resolved_config = call.resolved_config,
                     .resume = call.resume,
                     .checkpoint = call.checkpoint},
                    call, *ranks.communicator);
  });
}

}  // namespace dalle::training

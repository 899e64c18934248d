// From a config to a finished run: device, data, model, run directory, loop. Shared by all train-* commands.
#pragma once

#include "dalle/cli/command.h"
#include "dalle/core/device.h"
#include "dalle/distributed/join.h"
#include "dalle/training/trainer.h"

namespace dalle::training {

/// Builds nothing but the model's shapes, on the meta device, and prints parameters, FLOPs and memory.
void check_dvae(const DvaeTraining& config, const cli::Invocation& call);
void check_clip(const ClipTraining& config, const cli::Invocation& call);
void check_prior(const PriorTraining& config, const cli::Invocation& call);

/// The model with what its config leaves to the tokenizer, the token set or the dVAE. A missing file that nothing is taken
/// from is only noted.
models::PriorConfig prior_with_sizes(const PriorTraining& config);

/// The ranks of this run (distributed/join.h), with the command's --device and --threads.
distributed::Ranks join_ranks(const cli::Invocation& call, int64_t timeout_seconds);

/// Makes sure that all ranks do the same, creates or opens the run directory, logs what will be done, trains, and returns
/// the exit code.
int run_task(TrainingTask& task, TrainerSetup setup, const cli::Invocation& call,
             distributed::Communicator& communicator);

/// The whole of a train-* command's run.
template <class Task, class Config>
int run_stage(const Config& config, const cli::Invocation& call) {
  const distributed::Ranks ranks = join_ranks(call, config.trainer.timeout_seconds);
  if (config.trainer.deterministic && ranks.device.is_cuda()) use_deterministic_algorithms();
  return distributed::run_as_rank(*ranks.communicator, [&] {
    Task task(config, ranks.device);
    return run_task(task,
                    {.trainer = config.trainer,
                     .optimizer = config.optimizer,
                     .learning_rate = config.learning_rate,
                     .resolved_config = call.resolved_config,
                     .resume = call.resume,
                     .checkpoint = call.checkpoint,
                     .require_resumable =
                         [&](const std::string& saved, const std::string& place) {
                           const auto complete = [](const std::string& yaml, const std::string& of) {
                             return config::dump(config::load_config<Config>(config::parse_yaml(yaml, of)));
                           };
                           cli::require_resumable(config::describe<Config>(), complete(saved, place),
                                                  complete(call.resolved_config, "config"), "config.yaml", place);
                         }},
                    call, *ranks.communicator);
  });
}

}  // namespace dalle::training

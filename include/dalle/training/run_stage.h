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

/// Creates or opens the run directory, logs what will be done, trains, and returns the exit code.
int run_task(TrainingTask& task, TrainerSetup setup, const cli::Invocation& call);

/// The whole of a train-* command's run.
template <class Task, class Config>
int run_stage(const Config& config, const cli::Invocation& call) {
  set_num_threads(call.threads);
  Task task(config, select_device(call.device));
  return run_task(task,
                  {.trainer = config.trainer,
                   .optimizer = config.optimizer,
                   .learning_rate = config.learning_rate,
                   .resolved_config = call.resolved_config,
                   .resume = call.resume,
                   .checkpoint = call.checkpoint},
                  call);
}

}  // namespace dalle::training

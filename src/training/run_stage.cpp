#include "dalle/training/run_stage.h"

#include <iostream>

#include "dalle/core/error.h"
#include "dalle/core/logging.h"
#include "dalle/core/str.h"
#include "dalle/models/load.h"
#include "dalle/models/summary.h"
#include "dalle/text/tokenizer.h"
#include "dalle/training/task_support.h"

namespace dalle::training {
namespace {

void print_check(const cli::Invocation& call, const models::Summary& summary, int64_t batch_size) {
  std::cout << call.command << " " << call.config_name << ": the config is valid\n"
            << models::describe(summary, batch_size) << "\n";
}

}  // namespace

void check_dvae(const DvaeTraining& config, const cli::Invocation& call) {
  note_missing_sources(config.data);
  print_check(call, models::summarize(models::Dvae(config.model)), config.trainer.batch_size);
}

void check_clip(const ClipTraining& config, const cli::Invocation& call) {
  note_missing_sources(config.data);
  models::ClipConfig model = config.model;
  if (model.text_vocab_size == 0) {
    model.text_vocab_size = text::Tokenizer::load(tokenizer_file(config.tokenizer)).vocab_size() + 2;
  } else {
    note_missing("tokenizer", config.tokenizer);
  }
  print_check(call, models::summarize(models::Clip(model)), config.trainer.batch_size);
}

void check_prior(const PriorTraining& config, const cli::Invocation& call) {
  note_missing_sources(config.data);
  models::PriorConfig model = config.model;
  if (model.text_vocab_size == 0) {
    model.text_vocab_size = text::Tokenizer::load(tokenizer_file(config.tokenizer)).vocab_size();
  } else {
    note_missing("tokenizer", config.tokenizer);
  }
  if (model.grid_size == 0 || model.image_vocab_size == 0) {
    const auto dvae = models::load_dvae(config.dvae, {});
    model.grid_size = dvae.model->config().grid_size();
    model.image_vocab_size = dvae.model->config().vocab_size;
  } else {
    note_missing("dvae", config.dvae);
  }
  print_check(call, models::summarize(models::Prior(model)), config.trainer.batch_size);
}

int run_task(TrainingTask& task, TrainerSetup setup, const cli::Invocation& call) {
  const auto communicator = distributed::init(task.device());
  if (communicator->world_size() > 1) {
    throw ConfigError(
        Problem{"WORLD_SIZE", "one process", str(communicator->world_size()),
                "training on several processes is not part of this version; start it without a launcher"});
  }
  Trainer trainer(std::move(setup), task, *communicator);
  RunDirectory run =
      call.resume
          ? RunDirectory::open(call.run_dir)
          : RunDirectory::create(call.run_dir.empty() ? RunDirectory::default_path(call.config_name) : call.run_dir,
                                 call.resolved_config);
  set_log_file(run.log_file());
  log_info(str(call.command, ": ", run.root().string()));
  log_info(str("device: ", describe_device(task.device()), "; parameters: ", task.module().num_parameters()));
  const bool done = trainer.run(run);
  if (done) log_info(str(call.command, ": done at step ", trainer.step(), ", ", run.root().string()));
  return done ? cli::kDone : cli::kStopped;
}

}  // namespace dalle::training

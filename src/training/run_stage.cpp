#include "dalle/training/run_stage.h"

#include <iostream>

#include "dalle/core/error.h"
#include "dalle/core/logging.h"
#include "dalle/core/number_text.h"
#include "dalle/core/str.h"
#include "dalle/data/token_dataset.h"
#include "dalle/models/load.h"
#include "dalle/models/summary.h"
#include "dalle/optim/parameter_groups.h"
#include "dalle/text/text_tokenizer.h"
#include "dalle/training/matrix_speed.h"
#include "dalle/training/task_support.h"

namespace dalle::training {
namespace {

template <class Model, class Config>
void print_check(const cli::Invocation& call, const Model& model, const Config& config) {
  std::cout << call.command << " " << call.config_name << ": the config is valid\n"
            << models::describe(models::summarize(model), config.trainer.batch_size) << "\n"
            << optim::describe(optim::parameter_groups(model.named_parameters(), config.optimizer.weight_decay))
            << "\n";
}

/// What a prior's config leaves to the tokenizer, the token set or the dVAE.
models::PriorConfig prior_with_sizes(const PriorTraining& config) {
  models::PriorConfig model = config.model;
  if (model.text_vocab_size == 0) {
    model.text_vocab_size = text::Tokenizer::load(tokenizer_file(config.tokenizer)).vocab_size();
  } else {
    note_missing("tokenizer", config.tokenizer);
  }
  if (model.grid_size > 0 && model.image_vocab_size > 0) {
    note_missing("dvae", config.dvae);
    for (const auto& folder : config.data.tokens) note_missing("data.tokens", folder);
  } else if (!config.data.tokens.empty()) {
    const data::TokenDataset tokens(config.data.tokens);
    model.grid_size = tokens.info().grid_size;
    model.image_vocab_size = tokens.info().vocab_size;
  } else {
    const auto dvae = models::load_dvae(config.dvae, {});
    model.grid_size = dvae.model->config().grid_size();
    model.image_vocab_size = dvae.model->config().vocab_size;
  }
  return model;
}

}  // namespace

void check_dvae(const DvaeTraining& config, const cli::Invocation& call) {
  note_missing_sources(config.data);
  print_check(call, models::Dvae(config.model), config);
}

void check_clip(const ClipTraining& config, const cli::Invocation& call) {
  note_missing_sources(config.data);
  models::ClipConfig model = config.model;
  if (model.text_vocab_size == 0) {
    model.text_vocab_size = text::TextTokenizer::load(tokenizer_file(config.tokenizer)).vocab_size() + 2;
  } else {
    note_missing("tokenizer", config.tokenizer);
  }
  print_check(call, models::Clip(model), config);
}

void check_prior(const PriorTraining& config, const cli::Invocation& call) {
  note_missing_sources(config.data);
  const models::PriorConfig model = prior_with_sizes(config);
  print_check(call, models::Prior(model), config);
  const at::Device device = select_device(call.device);
  const models::PriorCompute compute{compute_dtype(config.precision, device),
                                     compute_dtype(config.head_precision, device)};
  const int64_t micro_batch = config.trainer.micro_size();
  const auto bytes = [&](bool checkpointing) {
    return scaled(models::activation_bytes(model, compute, micro_batch, checkpointing), "B");
  };
  const bool checkpointing = config.trainer.activation_checkpointing;
  std::cout << "activations at micro-batch " << micro_batch << ": about " << bytes(checkpointing) << " ("
            << bytes(!checkpointing) << " with trainer.activation_checkpointing: " << (checkpointing ? "false" : "true")
            << ")\n";
}

int run_task(TrainingTask& task, TrainerSetup setup, const cli::Invocation& call) {
  const auto communicator = distributed::init(task.device());
  if (communicator->world_size() > 1) {
    throw ConfigError(
        Problem{"WORLD_SIZE", "one process", str(communicator->world_size()),
                "training on several processes is not part of this version; start it without a launcher"});
  }
  if (const TrainingCost cost = task.cost(); cost.flops_per_sample > 0) {
    setup.matrix_speed = measure_matrix_speed(task.device(), cost.dtype);
  }
  Trainer trainer(std::move(setup), task, *communicator);
  RunDirectory run =
      call.resume
          ? RunDirectory::open(call.run_dir)
          : RunDirectory::create(call.run_dir.empty() ? RunDirectory::default_path(call.config_name) : call.run_dir,
                                 call.resolved_config);
  if (call.resume) run.update_config(call.resolved_config);
  set_log_file(run.log_file());
  log_info(str(call.command, ": ", run.root().string()));
  log_info(str("device: ", describe_device(task.device()), "; parameters: ", task.module().num_parameters()));
  const bool done = trainer.run(run);
  if (done) log_info(str(call.command, ": done at step ", trainer.step(), ", ", run.root().string()));
  return done ? cli::kDone : cli::kStopped;
}

}  // namespace dalle::training

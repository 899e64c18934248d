#include "dalle/training/run_stage.h"

#include <iostream>
#include <optional>

#include "dalle/core/device.h"
#include "dalle/core/error.h"
#include "dalle/core/logging.h"
#include "dalle/core/number_text.h"
#include "dalle/core/str.h"
#include "dalle/data/token_dataset.h"
#include "dalle/distributed/agreement.h"
#include "dalle/distributed/self_test.h"
#include "dalle/models/load.h"
#include "dalle/models/summary.h"
#include "dalle/optim/parameter_groups.h"
#include "dalle/text/text_tokenizer.h"
#include "dalle/training/clip_task.h"
#include "dalle/training/dvae_task.h"
#include "dalle/training/learning_rate.h"
#include "dalle/training/matrix_speed.h"
#include "dalle/training/prior_task.h"
#include "dalle/training/same_run.h"
#include "dalle/training/sharded_model.h"
#include "dalle/training/task_support.h"

namespace dalle::training {
namespace {

/// What gradient_compression would send and hold, as training cuts the model: with sharding hybrid in groups of
/// shard_group_size, where that is known.
std::string describe_compression(const std::vector<layers::NamedParameter>& parameters, const TrainerConfig& trainer) {
  const CompressionConfig& config = trainer.gradient_compression;
  if (!config.enabled) return "";
  const bool is_hybrid = trainer.sharding == Sharding::kHybrid;
  const int64_t group = is_hybrid ? std::max<int64_t>(1, trainer.shard_group_size) : 1;
  CompressionSizes sizes;
  for (int64_t part = 0; part < group; ++part) {
    sizes += compression_sizes(group == 1 ? whole_pieces(parameters) : pieces_of_part(parameters, group, part), config);
  }
  const bool is_small = config.error_buffers == distributed::ErrorFormat::kF16;
  const auto bytes_of_rank = [&](int64_t numbers, double each) {
    return scaled(each * static_cast<double>(numbers / group), "B");
  };
  return str(sizes.describe(config.rank), "\nerror buffers: ", bytes_of_rank(sizes.elements, is_small ? 2 : 4),
             " a rank, and ", bytes_of_rank(sizes.fixed, 4), " of fixed factors",
             trainer.shard_group_size > 0 && is_hybrid ? str(" (in groups of ", group, ")")
             : is_hybrid                               ? " (of one rank alone; groups share them)"
                                                       : "",
             "\n");
}

/// What training holds of the whole model between steps, beside activations.
std::string describe_state(const std::vector<layers::NamedParameter>& parameters, const TrainerConfig& trainer,
                           const optim::AdamWConfig& optimizer) {
  double numbers = 0, trained = 0, small = 0;  // small: with 16-bit moments
  for (const auto& entry : parameters) {
    const auto size = static_cast<double>(entry.parameter->tensor.numel());
    numbers += size;
    if (!entry.parameter->tensor.requires_grad()) continue;
    trained += size;
    if (optimizer.moments == optim::Moments::kF16 && optim::is_resblock_matrix(entry)) small += size;
  }
  const double held = 4 * (numbers + trained), moments = 2 * (4 * (trained - small) + 2 * small);
  const double average = trainer.ema_decay > 0 ? 4 * numbers : 0;
  return str("training state: ", scaled(held + moments + average, "B"), " (f32 weights and gradients ",
             scaled(held, "B"), ", moments in ", enum_name(optimizer.moments), " ", scaled(moments, "B"),
             average > 0 ? str(", average ", scaled(average, "B")) : "", ")",
             trainer.sharding != Sharding::kNone ? str(", before sharding ", enum_name(trainer.sharding)) : "",
             "; activations come on top and grow with the micro-batch");
}

template <class Model, class Config>
void print_check(const cli::Invocation& call, Model&& model, const Config& config) {
  freeze(model, config.trainer.freeze);
  LearningRate(config.learning_rate).require_metric(validation_names(config));
  std::cout << call.command << " " << call.config_name << ": the config is valid\n"
            << models::describe(models::summarize(model), config.trainer.batch_size) << "\n"
            << describe_state(model.named_parameters(), config.trainer, config.optimizer) << "\n"
            << optim::describe(optim::parameter_groups(model.named_parameters(), config.optimizer.weight_decay)) << "\n"
            << describe_compression(model.named_parameters(), config.trainer);
}

RunDirectory open_directory(const cli::Invocation& call) {
  if (!call.resume) {
    const auto path = call.run_dir.empty() ? RunDirectory::default_path(call.config_name) : call.run_dir;
    return RunDirectory::create(path, call.resolved_config);
  }
  RunDirectory run = RunDirectory::open(call.run_dir);
  run.update_config(call.resolved_config);
  return run;
}

}  // namespace

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
  const models::PriorCompute compute = prior_compute(config, device);
  const int64_t micro_batch = config.trainer.micro_size();
  const auto bytes = [&](bool checkpointing) {
    return scaled(models::activation_bytes(model, compute, micro_batch, checkpointing), "B");
  };
  const bool checkpointing = config.trainer.activation_checkpointing;
  std::cout << "activations at micro-batch " << micro_batch << ": about " << bytes(checkpointing) << " ("
            << bytes(!checkpointing) << " with trainer.activation_checkpointing: " << (checkpointing ? "false" : "true")
            << ")\n";
}

distributed::Ranks join_ranks(const cli::Invocation& call, int64_t timeout_seconds) {
  return distributed::join_ranks(
      {.device = call.device,
       .threads = call.threads,
       .timeout = std::chrono::seconds(timeout_seconds),
       .end = [name = call.command](const std::string& message) { cli::end_at_once(name, message); }});
}

int run_task(TrainingTask& task, TrainerSetup setup, const cli::Invocation& call,
             distributed::Communicator& communicator) {
  communicator.note("the start", distributed::Pace::kOpenEnded);
  require_same_run(communicator, call.resolved_config, task.data_plan(), task.validation_plan());
  distributed::require_agreement(communicator, {{"--resume", call.resume ? "given" : "not given",
                                                 "every rank must be given it, and see the same run directory"}});
  for (const auto& line : distributed::self_test(communicator, task.device())) log_info(line);
  if (const TrainingCost cost = task.cost(); cost.flops_per_sample > 0) {
    setup.matrix_speed = measure_matrix_speed(task.device(), cost.dtype);
  }
  Trainer trainer(std::move(setup), task, communicator);
  std::optional<RunDirectory> run;
  const std::string root = distributed::on_first_rank(communicator, [&] {
    run.emplace(open_directory(call));
    set_log_file(run->log_file());
    return run->root().string();
  });
  if (!run) run = RunDirectory::of_first_rank(root);
  log_info(str(call.command, ": ", root));
  const std::string ranks = communicator.world_size() > 1 ? str(communicator.world_size(), " ranks of ") : "";
  log_info(str("device: ", ranks, describe_device(task.device()), "; parameters: ", task.module().num_parameters()));
  bool done = false;
  // Told while the trainer is there: it waits for files when it goes.
  distributed::tell_failure(communicator, [&] { done = trainer.run(*run); });
  communicator.barrier();  // rank 0 serves the others to the end
  if (done) log_info(str(call.command, ": done at step ", trainer.step(), ", ", root));
  return done ? cli::kDone : cli::kStopped;
}

}  // namespace dalle::training

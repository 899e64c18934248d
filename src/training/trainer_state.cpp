// Saving and restoring the whole state of a run.
#include <c10/core/GradMode.h>

#include "dalle/core/error.h"
#include "dalle/core/logging.h"
#include "dalle/core/str.h"
#include "dalle/models/load.h"
#include "dalle/models/partial_load.h"
#include "dalle/storage/run_checkpoints.h"
#include "dalle/training/trainer.h"

namespace dalle::training {

void Trainer::save() {
  settle_updates();
  write_checkpoint();
}

void Trainer::write_checkpoint() {
  if (saved_step_ == step_) return;
  require_same_state();
  if (is_first_rank()) write_checkpoint_files();
  communicator_.await(0);
  saved_step_ = step_;
}

void Trainer::write_checkpoint_files() {
  storage::Checkpoint checkpoint;
  checkpoint.kind = task_.kind();
  checkpoint.config_yaml = setup_.resolved_config;
  checkpoint.model_config_yaml = task_.model_config_yaml();
  checkpoint.step = step_;
  checkpoint.samples_seen = step_ * setup_.trainer.batch_size;
  checkpoint.model = models::named_tensors(task_.module());
  if (ema_) checkpoint.ema = ema_->tensors();
  checkpoint.optimizer = optimizer_.state();
  checkpoint.tokenizer = task_.tokenizer_bytes();
  checkpoint.identities = task_.identities();
  checkpoint.identities["model"] = models::identity_of(checkpoint.model_config_yaml, checkpoint.model);
  if (ema_) checkpoint.identities["ema"] = models::identity_of(checkpoint.model_config_yaml, checkpoint.ema);
  checkpoint.scalars["learning_rate"] = learning_rate_.at(step_);
  for (const auto& [name, value] : learning_rate_.state()) checkpoint.scalars[name] = value;
  checkpoint.scalars["skipped_updates"] = static_cast<double>(finite_check_.total());
  if (num_captions_ > 0) {
    checkpoint.scalars["captions"] = static_cast<double>(num_captions_);
    checkpoint.scalars["truncated_captions"] = static_cast<double>(num_truncated_captions_);
  }
  for (const auto& [name, value] : task_.schedule_values(step_)) checkpoint.scalars[name] = value;
  storage::save_checkpoint(run_->checkpoint(step_), checkpoint);
  storage::update_latest(run_->root(), storage::checkpoint_name(step_));
  storage::prune_checkpoints(run_->root(), setup_.trainer.keep_checkpoints);
}

void Trainer::restore() {
  if (setup_.checkpoint.empty() && storage::list_checkpoints(run_->root()).empty()) {
    if (is_first_rank()) log_warning("this run was ended before its first checkpoint: it starts again at step 0");
    if (!setup_.trainer.init_from.empty()) initialize_from(setup_.trainer.init_from);
    return;
  }
  storage::LoadedCheckpoint loaded;
  if (setup_.checkpoint.empty()) {
    loaded = storage::load_latest_good(run_->root());
  } else {
    loaded = {setup_.checkpoint, storage::load_checkpoint(setup_.checkpoint)};
  }
  const storage::Checkpoint& checkpoint = loaded.checkpoint;
  const std::string place = loaded.folder.string();
  if (checkpoint.kind != task_.kind()) {
    throw ConfigError(Problem{place, "a checkpoint of a " + task_.kind(), "one of a " + checkpoint.kind, ""});
  }
  // The models this run depends on must still be the same ones.
  for (const auto& [name, identity] : task_.identities()) {
    const auto saved = checkpoint.identities.find(name);
    if (saved != checkpoint.identities.end() && saved->second != identity) {
      throw ConfigError(Problem{place, "the " + name + " it was trained with, identity " + saved->second, identity,
                                "point the config at the " + name + " of this run, or start a new run"});
    }
  }
  models::load_parameters(task_.module(), checkpoint.model, place);
  optimizer_.load_state(checkpoint.optimizer);
  if (ema_) ema_->load(checkpoint.ema);
  learning_rate_.load_state(checkpoint.scalars);
  resumed_config_ = checkpoint.config_yaml;
  step_ = checkpoint.step;
  saved_step_ = step_;
  const auto saved_count = [&](const char* name) {
    const auto saved = checkpoint.scalars.find(name);
    return saved == checkpoint.scalars.end() ? int64_t{0} : static_cast<int64_t>(saved->second);
  };
  finite_check_.set_total(saved_count("skipped_updates"));
  num_captions_ = saved_count("captions");
  num_truncated_captions_ = saved_count("truncated_captions");
}

void Trainer::initialize_from(const std::filesystem::path& given) {
  const auto path = storage::resolve_checkpoint(given);
  const auto checkpoint = storage::load_checkpoint(path, storage::LoadParts::kEvaluation);
  const auto& weights = checkpoint.evaluation_weights();
  if (checkpoint.kind != task_.kind()) {
    throw ConfigError(Problem{"trainer.init_from: " + path.string(), "a checkpoint of a " + task_.kind(),
                              "one of a " + checkpoint.kind, ""});
  }
  std::string report;
  if (setup_.trainer.init_partial) {
    report = ": " + models::load_what_fits(task_.module(), weights, path.string()).report();
  } else if (const auto differences = models::parameter_differences(task_.module(), weights); !differences.empty()) {
    throw ConfigError(Problem{"trainer.init_from: " + path.string(), "the tensors of the model in this config",
                              models::summarize_differences(differences),
                              "compare the model sections of the two configs, or take what fits with "
                              "trainer.init_partial: true"});
  } else {
    models::load_parameters(task_.module(), weights, path.string());
  }
  // A token's number means something else to another tokenizer or dVAE.
  for (const auto& [name, identity] : task_.identities()) {
    const auto saved = checkpoint.identities.find(name);
    if (saved == checkpoint.identities.end() || saved->second == identity) continue;
    log_warning(str("trainer.init_from: ", path.string(), " was trained with another ", name,
                    "; the rows of its tables stand for other tokens"));
  }
  if (ema_) ema_.emplace(parameters_, setup_.trainer.ema_decay, setup_.trainer.ema_interval_steps);
  log_info(str("starting from the weights of ", path.string(), " (step ", checkpoint.step, ")", report));
}

}  // namespace dalle::training

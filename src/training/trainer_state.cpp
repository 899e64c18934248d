// Saving and restoring the whole state of a run.
#include <c10/core/GradMode.h>

#include "dalle/core/error.h"
#include "dalle/core/logging.h"
#include "dalle/core/str.h"
#include "dalle/distributed/agreement.h"
#include "dalle/models/load.h"
#include "dalle/models/partial_load.h"
#include "dalle/storage/run_checkpoints.h"
#include "dalle/training/trainer.h"

namespace dalle::training {
namespace {

constexpr const char* kTrainingData = "training data";

/// `latest` points at a checkpoint, older ones go.
void show_checkpoint(const std::filesystem::path& run, const std::filesystem::path& folder, int64_t keep) {
  storage::update_latest(run, folder.filename().string());
  storage::prune_checkpoints(run, keep);
}

}  // namespace

void Trainer::save() {
  settle_updates();
  write_checkpoint();
}

// Ranks wait for each other and for the copy to host memory, and not for the disk.
void Trainer::write_checkpoint() {
  if (saved_step_ == step_) return;
  settle_checkpoint();
  require_same_state();
  auto gradients = gradient_state();
  if (sharded_) {
    start_checkpoint_parts(std::move(gradients));
  } else if (is_first_rank()) {
    start_checkpoint(gradients);
  }
  saved_step_ = step_;
}

storage::Checkpoint Trainer::checkpoint_texts() const {
  storage::Checkpoint checkpoint;
  checkpoint.kind = task_.kind();
  checkpoint.config_yaml = setup_.resolved_config;
  checkpoint.model_config_yaml = task_.model_config_yaml();
  checkpoint.step = step_;
  checkpoint.samples_seen = step_ * setup_.trainer.batch_size;
  checkpoint.tokenizer = task_.tokenizer_bytes();
  checkpoint.identities = task_.identities();
  if (const std::string plan = task_.data_plan(); !plan.empty()) checkpoint.identities[kTrainingData] = plan;
  checkpoint.scalars["learning_rate"] = learning_rate_.at(step_);
  for (const auto& [name, value] : learning_rate_.state()) checkpoint.scalars[name] = value;
  checkpoint.scalars["skipped_updates"] = static_cast<double>(finite_check_.total());
  if (num_captions_ > 0) {
    checkpoint.scalars["captions"] = static_cast<double>(num_captions_);
    checkpoint.scalars["truncated_captions"] = static_cast<double>(num_truncated_captions_);
  }
  for (const auto& [name, value] : task_.schedule_values(step_)) checkpoint.scalars[name] = value;
  return checkpoint;
}

void Trainer::start_checkpoint(const std::vector<storage::TensorPiece>& gradients) {
  storage::Checkpoint checkpoint = checkpoint_texts();
  checkpoint.model = copied_to_host(models::named_tensors(task_.module()));
  if (ema_) checkpoint.ema = copied_to_host(ema_->tensors());
  auto optimizer = optimizer_.state();
  for (const auto& piece : gradients) optimizer.push_back({piece.name, piece.values.view(piece.shape)});
  checkpoint.optimizer = copied_to_host(std::move(optimizer));
  writer_.start([checkpoint = std::move(checkpoint), root = run_->root(), folder = run_->checkpoint(step_),
                 keep = setup_.trainer.keep_checkpoints]() mutable {
    checkpoint.identities["model"] = models::identity_of(checkpoint.model_config_yaml, checkpoint.model);
    if (!checkpoint.ema.empty()) {
      checkpoint.identities["ema"] = models::identity_of(checkpoint.model_config_yaml, checkpoint.ema);
    }
    storage::save_checkpoint(folder, checkpoint);
    show_checkpoint(root, folder, keep);
    return std::string();
  });
}

// Each rank of the first group writes its parts; the others hold the same.
void Trainer::start_checkpoint_parts(std::vector<storage::TensorPiece> gradients) {
  PartsUnderWay parts{.folder = run_->checkpoint(step_), .texts = checkpoint_texts()};
  parts.begun =
      distributed::on_first_rank(communicator_, [&] { return storage::begin_checkpoint(parts.folder).string(); });
  if (sharded_->is_first_group()) {
    storage::CheckpointPart part{.number = sharded_->part(), .num_parts = sharded_->group_size()};
    part.model = copied_to_host(sharded_->weights_as_pieces());
    if (ema_) part.ema = copied_to_host(sharded_->as_pieces(ema_->tensors()));
    auto optimizer = sharded_->optimizer_as_pieces(optimizer_.state());
    std::move(gradients.begin(), gradients.end(), std::back_inserter(optimizer));
    part.optimizer = copied_to_host(std::move(optimizer));
    writer_.start([part = std::move(part), begun = parts.begun] {
      return storage::manifest_text(storage::write_part(begun, part));
    });
  }
  parts_under_way_ = std::move(parts);
}

// Nothing is at the checkpoint's place before every rank has its part on the disk.
void Trainer::join_checkpoint_parts() {
  const PartsUnderWay parts = std::move(*parts_under_way_);
  parts_under_way_.reset();
  constexpr char kWritten = 'w', kFailed = 'f';
  std::string own;
  try {
    own = kWritten + writer_.finish();
  } catch (const std::exception& error) {
    own = kFailed + std::string(error.what());
  }
  std::vector<storage::ManifestEntry> files;
  const auto texts = distributed::gather_texts(communicator_, own);
  for (size_t rank = 0; rank < texts.size(); ++rank) {
    if (texts[rank].front() == kFailed) throw FileError(str("rank ", rank, ": ", texts[rank].substr(1)));
    for (auto& entry : storage::parse_manifest_text(texts[rank].substr(1), parts.begun)) {
      files.push_back(std::move(entry));
    }
  }
  if (!is_first_rank()) return;
  writer_.start([parts, files = std::move(files), root = run_->root(), keep = setup_.trainer.keep_checkpoints] {
    storage::finish_checkpoint(parts.begun, parts.folder, parts.texts, files);
    show_checkpoint(root, parts.folder, keep);
    return std::string();
  });
}

void Trainer::settle_checkpoint() {
  note("saving", distributed::Pace::kOpenEnded);
  if (parts_under_way_) join_checkpoint_parts();
  writer_.finish();
  communicator_.await(0);
}

void Trainer::restore() {
  if (setup_.checkpoint.empty() && storage::list_checkpoints(run_->root()).empty()) {
    if (is_first_rank()) log_warning("this run was ended before its first checkpoint: it starts again at step 0");
    if (!setup_.trainer.init_from.empty()) initialize_from(setup_.trainer.init_from);
    return;
  }
  storage::LoadedCheckpoint loaded;
  const auto parts = sharded_ ? storage::LoadParts::kTexts : storage::LoadParts::kAll;
  if (setup_.checkpoint.empty() && sharded_) {
    // One rank reads all of it to tell whether it is intact.
    loaded.folder =
        distributed::on_first_rank(communicator_, [&] { return storage::latest_good_folder(run_->root()).string(); });
    loaded.checkpoint = storage::load_checkpoint(loaded.folder, parts);
  } else if (setup_.checkpoint.empty()) {
    loaded = storage::load_latest_good(run_->root());
  } else {
    loaded = {setup_.checkpoint, storage::load_checkpoint(setup_.checkpoint, parts)};
  }
  const storage::Checkpoint& checkpoint = loaded.checkpoint;
  const std::string place = loaded.folder.string();
  if (checkpoint.kind != task_.kind()) {
    throw ConfigError(Problem{place, "a checkpoint of a " + task_.kind(), "one of a " + checkpoint.kind, ""});
  }
  // The run directory's config.yaml may have been edited.
  if (setup_.require_resumable) setup_.require_resumable(checkpoint.config_yaml, place);
  // The models this run depends on must still be the same ones.
  for (const auto& [name, identity] : task_.identities()) {
    const auto saved = checkpoint.identities.find(name);
    if (saved != checkpoint.identities.end() && saved->second != identity) {
      throw ConfigError(Problem{place, "the " + name + " it was trained with, identity " + saved->second, identity,
                                "point the config at the " + name + " of this run, or start a new run"});
    }
  }
  const auto trained_on = checkpoint.identities.find(kTrainingData);
  if (is_first_rank() && trained_on != checkpoint.identities.end() && trained_on->second != task_.data_plan()) {
    log_warning(str("the training data have changed since this checkpoint (", trained_on->second, "; now ",
                    task_.data_plan(), "): what has been seen of the epoch and what comes are not of one order"));
  }
  if (sharded_) {
    restore_parts(loaded.folder);
  } else {
    models::load_parameters(task_.module(), checkpoint.model, place);
    auto optimizer = checkpoint.optimizer;
    load_gradient_state(optimizer);
    optimizer_.load_state(optimizer);
    if (ema_) ema_->load(checkpoint.ema);
  }
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

// One who resumes from an older checkpoint leaves the others' branch: what comes must not be mixed with it.
void Trainer::leave_later_checkpoints() const {
  if (setup_.checkpoint.empty()) return;
  // It may have been named by its link.
  const auto folder = std::filesystem::canonical(setup_.checkpoint);
  const auto left = storage::leave_later_checkpoints(run_->root(), folder.filename().string());
  if (left.empty()) return;
  log_warning(str(left.size(), left.size() == 1 ? " later checkpoint is" : " later checkpoints are",
                  " kept aside as checkpoints/", left.front(), left.size() == 1 ? "" : str(" .. ", left.back()),
                  "; remove what you don't need"));
}

void Trainer::restore_parts(const std::filesystem::path& folder) {
  const auto files = [&](const char* kind) { return storage::checkpoint_tensors(folder, kind); };
  const auto place = [&](const char* kind) { return (folder / kind).string(); };
  sharded_->load(sharded_->parts_from(files("model"), place("model")));
  optimizer_.load_state(sharded_->optimizer_state_from(files("optimizer"), place("optimizer")));
  if (compression_) compression_->load_state(files("optimizer"));
  std::vector<storage::NamedTensor> scales;
  const auto optimizer = files("optimizer");
  for (const auto& name : optimizer.names()) {
    if (optim::ResblockScaling::is_state(name)) scales.push_back({name, optimizer.read(name)});
  }
  load_scales(scales);
  if (ema_) ema_->load(sharded_->parts_from(files("ema"), place("ema")));
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
    const auto load = [&] {
      report = ": " + models::load_what_fits(task_.module(), weights, path.string()).report();
      if (sharded_) sharded_->keep_parts();
    };
    sharded_ ? sharded_->with_whole_weights(nullptr, load) : load();
  } else if (const auto differences = models::parameter_differences(task_.module(), weights); !differences.empty()) {
    throw ConfigError(Problem{"trainer.init_from: " + path.string(), "the tensors of the model in this config",
                              models::summarize_differences(differences),
                              "compare the model sections of the two configs, or take what fits with "
                              "trainer.init_partial: true"});
  } else if (sharded_) {
    sharded_->load(sharded_->parts_of(weights));
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
  if (ema_) {
    ema_.emplace(sharded_ ? sharded_->parts() : parameters_, setup_.trainer.ema_decay,
                 setup_.trainer.ema_interval_steps);
  }
  log_info(str("starting from the weights of ", path.string(), " (step ", checkpoint.step, ")", report));
}

}  // namespace dalle::training

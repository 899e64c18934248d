// The configs of the trainers. A key in YAML is a field here; --help and docs/configuration.md come from these lists.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "dalle/config/fields.h"
#include "dalle/core/precision.h"
#include "dalle/data/data_config.h"
#include "dalle/models/clip.h"
#include "dalle/models/dvae.h"
#include "dalle/models/prior.h"
#include "dalle/optim/adamw.h"
#include "dalle/optim/schedule.h"
#include "dalle/text/tokenizer_trainer.h"
#include "dalle/training/gradient_compression.h"
#include "dalle/training/health.h"
#include "dalle/training/sharding.h"

namespace dalle::training {

/// What the loop itself needs, the same for every stage.
struct TrainerConfig {
  int64_t num_steps = 1000;
  int64_t batch_size = 16;
  int64_t micro_batch_size = 0;
  int64_t seed = 0;
  double clip_norm = 0;
  double ema_decay = 0.999;
  int64_t ema_interval_steps = 1;
  int64_t max_nonfinite_steps = 10;
  int64_t log_interval_steps = 20;
  int64_t validation_interval_steps = 0;
  int64_t preview_interval_steps = 0;
  int64_t checkpoint_interval_steps = 1000;
  int64_t keep_checkpoints = 2;
  bool activation_checkpointing = false;
  Sharding sharding = Sharding::kNone;
  int64_t shard_group_size = 0;
  int64_t timeout_seconds = 120;
  bool deterministic = true;
  CompressionConfig gradient_compression;
  bool overfit_one_batch = false;
  int64_t exponent_histogram_interval_steps = 0;
  int64_t profile_from_step = -1;
  int64_t profile_num_steps = 5;
  std::filesystem::path init_from;
  bool init_partial = false;
  std::vector<std::string> freeze;
  HealthConfig health;

  /// Samples of one pass on each of `world_size` ranks.
  int64_t micro_size(int64_t world_size = 1) const {
    return micro_batch_size > 0 ? micro_batch_size : batch_size / world_size;
  }
  bool is_sharded(int64_t world_size) const { return world_size > 1 && sharding != Sharding::kNone; }
  /// Throws ConfigError where batch_size can't be shared out evenly among so many ranks.
  void require_shares(int64_t world_size) const;

  static void visit_fields(auto& self, auto&& field) {
    field("num_steps", self.num_steps, "optimizer updates in all", {.min = 0, .unit = "steps", .changeable = true});
    field("batch_size", self.batch_size, "samples of one update, over all ranks and micro-batches", {.min = 1});
    field(
        "micro_batch_size", self.micro_batch_size,
        "samples of one forward and backward pass on one rank; 0 = batch_size / ranks; times the ranks it must divide "
        "batch_size; changes no result",
        {.min = 0, .changeable = true});
    field("seed", self.seed, "seed of everything random", {.min = 0});
    field("clip_norm", self.clip_norm, "gradients are scaled down to this global norm; 0 = never",
          {.min = 0, .changeable = true});
    field("ema_decay", self.ema_decay, "decay of the averaged weights; 0 = no average", {.min = 0, .max = 1});
    field("ema_interval_steps", self.ema_interval_steps, "the average is updated every so many steps",
          {.min = 1, .unit = "steps"});
    field("max_nonfinite_steps", self.max_nonfinite_steps,
          "updates with a loss or gradient that is not finite are skipped; so many in a row end the run",
          {.min = 1, .unit = "steps", .changeable = true});
    field("log_interval_steps", self.log_interval_steps, "a line in metrics.jsonl every so many steps",
          {.min = 1, .unit = "steps", .changeable = true});
    field("validation_interval_steps", self.validation_interval_steps,
          "validation every so many steps; 0 = at the end only", {.min = 0, .unit = "steps", .changeable = true});
    field("preview_interval_steps", self.preview_interval_steps,
          "pictures in samples/ every so many steps; 0 = at the end only",
          {.min = 0, .unit = "steps", .changeable = true});
    field("checkpoint_interval_steps", self.checkpoint_interval_steps,
          "a checkpoint every so many steps, and one at the end; 0 = at the end only",
          {.min = 0, .unit = "steps", .changeable = true});
    field("keep_checkpoints", self.keep_checkpoints, "newest checkpoints that are kept; 0 = all",
          {.min = 0, .changeable = true});
    field("activation_checkpointing", self.activation_checkpointing,
          "keep only the inputs of residual blocks and compute the blocks again for their gradients: less memory, "
          "about a "
          "third more time, the same numbers",
          {.changeable = true});
    field("sharding", self.sharding,
          "what ranks split: none; optimizer = moments and averages; full = weights and gradients too, each resblock "
          "gathered for its use; hybrid = full within a machine, replicas across machines (paper)",
          {.changeable = true});
    field("shard_group_size", self.shard_group_size,
          "ranks that share one copy with sharding hybrid; 0 = those of a machine", {.min = 0, .changeable = true});
    field("timeout_seconds", self.timeout_seconds,
          "when a rank is killed, hangs or fails, all others stop within this time; no rank may take more than half "
          "of it for one pass while others wait",
          {.min = 5, .max = 86400, .unit = "seconds", .changeable = true});
    field("deterministic", self.deterministic,
          "on a GPU choose algorithms that give the same bits each time, so that a resumed run is the same; off, some "
          "are "
          "faster",
          {.changeable = true});
    field("gradient_compression", self.gradient_compression, "PowerSGD (paper 2.5, E.2)");
    field("overfit_one_batch", self.overfit_one_batch,
          "train on the first batch again and again: the loss must go to its floor");
    field("exponent_histogram_interval_steps", self.exponent_histogram_interval_steps,
          "with precision fp16: every so many steps, how often each base-2 exponent occurs in the gradients of each "
          "resblock, in exponents.jsonl; 0 = never",
          {.min = 0, .unit = "steps", .changeable = true});
    field("profile_from_step", self.profile_from_step,
          "first step of a profiler trace (profile.json, for chrome://tracing); -1 = none",
          {.min = -1, .unit = "steps", .changeable = true});
    field("profile_num_steps", self.profile_num_steps, "steps in the trace",
          {.min = 1, .unit = "steps", .changeable = true});
    field("init_from", self.init_from, "start from this checkpoint's weights (a new run, its own step 0)");
    field("init_partial", self.init_partial,
          "init_from may be a model of another size: what fits is taken, tables (embeddings, heads) row by row, and "
          "the log "
          "says what was not");
    field("freeze", self.freeze, "parameters whose names start so keep their values, for example [encoder.]");
    field("health", self.health, "warnings about numbers that stay out of their range");
  }
  void validate(const std::string& place) const;
};

/// Held-out data, read in order without augmentation.
struct ValidationConfig {
  std::vector<data::SourceConfig> sources;
  int64_t max_samples = 0;
  int64_t batch_size = 64;

  static void visit_fields(auto& self, auto&& field) {
    field("sources", self.sources, "held-out data; none = no validation");
    field("max_samples", self.max_samples, "use the first so many; 0 = all", {.min = 0, .changeable = true});
    field("batch_size", self.batch_size, "samples of one evaluation pass", {.min = 1, .changeable = true});
  }
};

enum class KlNormalization { kPerPosition, kPaper };

/// The relaxation and its schedules (paper A.2: half-cosine, tau 1 -> 1/16 over 150,000, kl weight 0 -> 6.6 over 5,000).
struct RelaxationConfig {
  double temperature_start = 1;
  double temperature_end = 0.0625;
  int64_t temperature_steps = 150000;
  double kl_weight_start = 0;
  double kl_weight_end = 6.6;
  int64_t kl_weight_steps = 5000;
  KlNormalization kl_normalization = KlNormalization::kPaper;
  std::optional<double> min_log_scale;
  bool straight_through = false;

  static void visit_fields(auto& self, auto&& field) {
    field("temperature_start", self.temperature_start, "temperature of the Gumbel-softmax at step 0", {.min = 1e-6});
    field("temperature_end", self.temperature_end, "temperature after temperature_steps", {.min = 1e-6});
    field("temperature_steps", self.temperature_steps, "length of the half-cosine between them",
          {.min = 0, .unit = "steps"});
    field("kl_weight_start", self.kl_weight_start, "KL weight at step 0", {.min = 0});
    field("kl_weight_end", self.kl_weight_end, "KL weight after kl_weight_steps", {.min = 0});
    field("kl_weight_steps", self.kl_weight_steps, "length of the half-cosine between them",
          {.min = 0, .unit = "steps"});
    field("kl_normalization", self.kl_normalization,
          "paper: the weight multiplies the KL summed over positions, divided by the sub-pixels (6.6/192 at stride 8); "
          "per_position: it multiplies the mean KL of a position");
    field("min_log_scale", self.min_log_scale, "lower clamp of the decoder's ln b; null = none, as in the paper");
    field("straight_through", self.straight_through,
          "the decoder is given the hard code in training, with the relaxed one's gradient (paper: no, soft in both)");
  }
};

/// The codebook of model.quantizer vq.
struct VectorQuantizerConfig {
  double codebook_decay = 0.99;
  double commitment_weight = 0.25;
  double restart_share = 0.03;

  static void visit_fields(auto& self, auto&& field) {
    field("codebook_decay", self.codebook_decay, "decay of the moving averages that the codebook is made of",
          {.min = 0, .max = 1});
    field("commitment_weight", self.commitment_weight,
          "weight of the mean squared distance between the encoder's numbers and their codes'", {.min = 0});
    field("restart_share", self.restart_share,
          "a code used less than this share of an even part is moved onto a vector of the batch; 0 = never",
          {.min = 0, .max = 1});
  }
};

/// Ranges of the dVAE's numbers outside of which trainer.health warns. A code's KL is at most ln vocab_size.
struct DvaeHealthConfig {
  double min_kl_share = 0.01;
  double max_kl_share = 0.85;
  double min_perplexity_share = 0.03;

  static void visit_fields(auto& self, auto&& field) {
    field("min_kl_share", self.min_kl_share, "KL of a position below this share of ln vocab_size is a warning",
          {.min = 0, .max = 1, .changeable = true});
    field("max_kl_share", self.max_kl_share, "KL of a position above this share of ln vocab_size is a warning",
          {.min = 0, .max = 1, .changeable = true});
    field(
        "min_perplexity_share", self.min_perplexity_share,
        "perplexity of the codes below this share of vocab_size (of the batch's positions, where they are fewer) is a "
        "warning",
        {.min = 0, .max = 1, .changeable = true});
  }
};

struct DvaeTraining {
  TrainerConfig trainer;
  Precision precision = Precision::kAuto;
  Precision relaxation_precision = Precision::kF32;
  data::DataConfig data;
  ValidationConfig validation;
  models::DvaeConfig model;
  RelaxationConfig relaxation;
  VectorQuantizerConfig vector_quantizer;
  DvaeHealthConfig health;
  optim::AdamWConfig optimizer;
  optim::ScheduleConfig learning_rate;

  static void visit_fields(auto& self, auto&& field) {
    field("trainer", self.trainer, "the loop");
    field("precision", self.precision, "number format of matrix work", {.changeable = true});
    field("relaxation_precision", self.relaxation_precision,
          "number format of the two convolutions around the relaxation (paper: f32)", {.changeable = true});
    field("data", self.data, "training pictures");
    field("validation", self.validation, "held-out pictures");
    field("model", self.model, "the dVAE");
    field("relaxation", self.relaxation, "temperature and KL weight");
    field("vector_quantizer", self.vector_quantizer, "the codebook of model.quantizer vq");
    field("health", self.health, "ranges of the dVAE's numbers outside of which there are warnings");
    field("optimizer", self.optimizer, "AdamW");
    field("learning_rate", self.learning_rate, "learning rate schedule");
  }
  void validate(const std::string& place) const;
};

struct ClipTraining {
  TrainerConfig trainer;
  Precision precision = Precision::kAuto;
  data::DataConfig data;
  ValidationConfig validation;
  models::ClipConfig model;
  std::filesystem::path tokenizer;
  double bpe_dropout = 0.1;
  std::filesystem::path dvae;
  double reconstructed_share = 0;
  int64_t shift_pixels = 0;
  optim::AdamWConfig optimizer;
  optim::ScheduleConfig learning_rate;

  static void visit_fields(auto& self, auto&& field) {
    field("trainer", self.trainer, "the loop");
    field("precision", self.precision, "number format of matrix work", {.changeable = true});
    field("data", self.data, "training pairs");
    field("validation", self.validation, "held-out pairs");
    field("model", self.model, "the two towers; text_vocab_size 0 = the tokenizer's pieces + 2");
    field("tokenizer", self.tokenizer, "tokenizer.model, or the run directory of train-tokenizer",
          {.changeable = true});
    field("bpe_dropout", self.bpe_dropout, "share of BPE merges skipped in training", {.min = 0, .max = 1});
    field("dvae", self.dvae, "dVAE whose reconstructions are mixed in; empty = none", {.changeable = true});
    field("reconstructed_share", self.reconstructed_share,
          "share of training pictures replaced by the dVAE's reconstruction, so that samples are no new domain",
          {.min = 0, .max = 1});
    field("shift_pixels", self.shift_pixels, "training pictures are shifted by up to so many pixels, edges repeated",
          {.min = 0, .unit = "pixels"});
    field("optimizer", self.optimizer, "AdamW");
    field("learning_rate", self.learning_rate, "learning rate schedule");
  }
  void validate(const std::string& place) const;
};

/// Pictures that the frozen dVAE encodes as they come, or stored tokens.
struct PriorData : data::DataConfig {
  PriorData() { augmentation = data::Augmentation::kStage2; }

  std::vector<std::filesystem::path> tokens;

  static void visit_fields(auto& self, auto&& field) {
    data::DataConfig::visit_fields(self, field);
    field("tokens", self.tokens,
          "token sets of encode-images to train on in place of sources: their run directories, read as one; the keys "
          "that prepare pictures are then not used",
          {.changeable = true});
  }
  void validate(const std::string& place) const;
};

/// Held-out pictures or stored tokens, read in order without augmentation.
struct PriorValidation : ValidationConfig {
  std::vector<std::filesystem::path> tokens;

  static void visit_fields(auto& self, auto&& field) {
    ValidationConfig::visit_fields(self, field);
    field("tokens", self.tokens,
          "held-out token sets of encode-images, in place of sources; their first crops are used",
          {.changeable = true});
  }
  void validate(const std::string& place) const;
};

struct PriorTraining {
  TrainerConfig trainer;
  Precision precision = Precision::kAuto;
  Precision head_precision = Precision::kF32;
  PriorData data;
  PriorValidation validation;
  models::PriorConfig model;
  std::filesystem::path tokenizer;
  std::filesystem::path dvae;
  double bpe_dropout = 0.1;
  double dropout = 0;
  double attention_dropout = 0;
  double caption_dropout = 0;
  double text_loss_weight = 0.125;
  double image_loss_weight = 0.875;
  int64_t preview_captions = 8;
  std::vector<std::string> preview_texts;
  optim::AdamWConfig optimizer;
  optim::ScheduleConfig learning_rate;

  static void visit_fields(auto& self, auto&& field) {
    field("trainer", self.trainer, "the loop");
    field("precision", self.precision,
          "number format of matrix work; fp16: with per-resblock gradient scaling (paper 2.4)", {.changeable = true});
    field("head_precision", self.head_precision, "number format of the output heads (paper: f32)",
          {.changeable = true});
    field("data", self.data, "training pairs");
    field("validation", self.validation, "held-out pairs");
    field("model", self.model,
          "the transformer; text_vocab_size, image_vocab_size and grid_size 0 = as the tokenizer and the dVAE have");
    field("tokenizer", self.tokenizer, "tokenizer.model, or the run directory of train-tokenizer",
          {.changeable = true});
    field("dvae", self.dvae,
          "the frozen dVAE that makes the image tokens: checkpoint, run directory or .safetensors; with data.tokens it "
          "only draws previews and may be left out",
          {.changeable = true});
    field("bpe_dropout", self.bpe_dropout, "share of BPE merges skipped in training (paper: 0.1)",
          {.min = 0, .max = 1});
    field("dropout", self.dropout,
          "share of the numbers set to 0 in training, after the embeddings and at the end of each residual branch",
          {.min = 0, .max = 0.99, .changeable = true});
    field("attention_dropout", self.attention_dropout, "share of the attention weights set to 0 in training",
          {.min = 0, .max = 0.99, .changeable = true});
    field(
        "caption_dropout", self.caption_dropout,
        "share of the captions left out in training, pads in their place, so that samples can be drawn with --guidance "
        "(classifier-free guidance; usual: 0.1)",
        {.min = 0, .max = 1});
    field("text_loss_weight", self.text_loss_weight, "weight of the text loss (paper: 1/8)", {.min = 0});
    field("image_loss_weight", self.image_loss_weight, "weight of the image loss (paper: 7/8)", {.min = 0});
    field("preview_captions", self.preview_captions,
          "captions of the training data, and as many held-out ones, that are sampled at every validation and preview: "
          "the first; 0 = none; with trainer.sharding full and hybrid every rank holds the whole model meanwhile",
          {.min = 0, .max = 64, .changeable = true});
    field("preview_texts", self.preview_texts, "captions of your own that are sampled with them", {.changeable = true});
    field("optimizer", self.optimizer, "AdamW");
    field("learning_rate", self.learning_rate, "learning rate schedule");
  }
  void validate(const std::string& place) const;
};

/// Where captions come from, for train-tokenizer.
struct CaptionData {
  std::vector<data::SourceConfig> sources;
  static void visit_fields(auto& self, auto&& field) {
    field("sources", self.sources, "data sets whose captions are read");
  }
};

struct TokenizerTraining {
  CaptionData data;
  text::TokenizerConfig tokenizer;

  static void visit_fields(auto& self, auto&& field) {
    field("data", self.data, "captions");
    field("tokenizer", self.tokenizer, "the BPE model");
  }
};

}  // namespace dalle::training

namespace dalle {
template <>
struct EnumNames<training::KlNormalization> {
  static constexpr EnumName<training::KlNormalization> values[] = {
      {training::KlNormalization::kPerPosition, "per_position"}, {training::KlNormalization::kPaper, "paper"}};
};
}  // namespace dalle

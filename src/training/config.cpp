#include "dalle/training/config.h"

#include "dalle/core/error.h"
#include "dalle/core/str.h"

namespace dalle::training {

void TrainerConfig::validate(const std::string& place) const {
  if (micro_batch_size > 0 && batch_size % micro_batch_size != 0) {
    throw ConfigError(
        Problem{place, str("batch_size divisible by micro_batch_size ", micro_batch_size), str(batch_size), ""});
  }
  if (ema_decay >= 1) throw ConfigError(Problem{place, "ema_decay below 1", str(ema_decay), ""});
  if (!gradient_compression.enabled) return;
  if (sharding == Sharding::kFull || sharding == Sharding::kOptimizer) {
    throw ConfigError(Problem{place, "sharding none or hybrid with gradient_compression", str(enum_name(sharding)),
                              "PowerSGD compresses what replicas send each other, and here there is one copy alone; "
                              "take hybrid, or gradient_compression.enabled: false"});
  }
  if (sharding == Sharding::kHybrid && gradient_compression.num_shards > 1) {
    throw ConfigError(Problem{place, "gradient_compression.num_shards 1 with sharding hybrid",
                              str(gradient_compression.num_shards), "the parts of a group's ranks are the shards"});
  }
}

void TrainerConfig::require_shares(int64_t world_size) const {
  const int64_t pass = micro_size(world_size) * world_size;
  if (pass > 0 && batch_size % pass == 0) return;
  const std::string of_micro = micro_batch_size > 0 ? str("micro_batch_size ", micro_batch_size, " times ") : "";
  throw ConfigError(Problem{"trainer.batch_size", str("a multiple of ", of_micro, "the ", world_size, " ranks"),
                            str(batch_size), "batch_size counts the samples of all ranks together"});
}

namespace {

/// The paper gives scales to the resblocks of the prior's transformer alone; elsewhere small gradients would become 0.
void refuse_fp16(const std::string& place, const std::string& key, Precision precision, const std::string& why) {
  if (precision != Precision::kFp16) return;
  throw ConfigError(Problem{place, key + " auto, f32 or bf16", "fp16",
                            why + ": gradients below 2^-24 would be lost; bf16 holds them"});
}

}  // namespace

void DvaeTraining::validate(const std::string& place) const {
  refuse_fp16(place, "precision", precision, "per-resblock gradient scales are for the prior's transformer");
  refuse_fp16(place, "relaxation_precision", relaxation_precision, "the dVAE has no gradient scales");
  const bool vq = model.quantizer == models::Quantizer::kVq;
  if (vq && relaxation.straight_through) {
    throw ConfigError(Problem{place, "relaxation.straight_through with model.quantizer gumbel", "quantizer vq",
                              "a codebook always passes its gradient straight through; leave the key out"});
  }
  if (vector_quantizer.codebook_decay >= 1) {
    throw ConfigError(Problem{place, "vector_quantizer.codebook_decay below 1", str(vector_quantizer.codebook_decay),
                              "at 1 the codebook would never move"});
  }
}

void ClipTraining::validate(const std::string& place) const {
  refuse_fp16(place, "precision", precision, "per-resblock gradient scales are for the prior's transformer");
  if (reconstructed_share > 0 && dvae.empty()) {
    throw ConfigError(Problem{place, "a dvae for reconstructed_share", "none", "set dvae, or reconstructed_share: 0"});
  }
}

namespace {

void refuse_both(const std::string& place, bool sources, bool tokens) {
  if (!sources || !tokens) return;
  throw ConfigError(Problem{place, "sources or tokens", "both", "leave one of them out"});
}

}  // namespace

void PriorData::validate(const std::string& place) const {
  if (tokens.empty()) data::DataConfig::validate(place);
  refuse_both(place, !sources.empty(), !tokens.empty());
}

void PriorValidation::validate(const std::string& place) const {
  refuse_both(place, !sources.empty(), !tokens.empty());
}

void PriorTraining::validate(const std::string& place) const {
  refuse_fp16(place, "head_precision", head_precision, "the heads lie outside of resblocks, whose scales they lack");
  if (!dvae.empty()) return;
  if (!data.sources.empty() || !validation.sources.empty()) {
    throw ConfigError(Problem{place, "a dvae to encode the pictures of data.sources and validation.sources", "none",
                              "set dvae, or train and validate on tokens of encode-images (data.tokens)"});
  }
}

}  // namespace dalle::training

#include "dalle/training/dvae_health.h"

#include <algorithm>
#include <cmath>

#include "dalle/core/str.h"
#include "dalle/training/task_support.h"

namespace dalle::training {
namespace {

HealthRule kl_at_zero(const DvaeTraining& config, const char* phase, double log_vocab) {
  return {.alarm = "kl_at_zero",
          .phase = phase,
          .metric = "kl",
          .low = config.health.min_kl_share * log_vocab,
          .meaning = "the codes carry nothing of the picture (posterior collapse)",
          .remedy = str("start again with a lower relaxation.kl_weight_end (now ",
                        short_number(config.relaxation.kl_weight_end), ") or a longer ramp (kl_weight_steps, now ",
                        config.relaxation.kl_weight_steps, "), or a lower learning_rate.start (now ",
                        short_number(config.learning_rate.start), ")")};
}

HealthRule kl_at_maximum(const DvaeTraining& config, const char* phase, double log_vocab) {
  return {.alarm = "kl_at_maximum",
          .phase = phase,
          .metric = "kl",
          .high = config.health.max_kl_share * log_vocab,
          .meaning = str("near its greatest value ln ", config.model.vocab_size, " = ", short_number(log_vocab),
                         ": the encoder is sure of one code everywhere, nothing spreads its choice over the codebook"),
          .remedy = str("raise relaxation.kl_weight_end (now ", short_number(config.relaxation.kl_weight_end),
                        "; the paper's 6.6 / 192 = 0.034 per position was chosen for this); if a single code serves "
                        "everything, lower learning_rate.start (now ",
                        short_number(config.learning_rate.start), ")")};
}

HealthRule codebook_collapse(const DvaeTraining& config, const char* phase, const char* metric, int64_t positions) {
  const double capacity = static_cast<double>(std::min(config.model.vocab_size, positions));
  const std::string remedy =
      config.model.quantizer == models::Quantizer::kVq
          ? str("raise vector_quantizer.restart_share (now ", short_number(config.vector_quantizer.restart_share),
                "; 0 never restarts dead codes), or lower learning_rate.start")
          : str("raise relaxation.kl_weight_end where the KL is high (now ",
                short_number(config.relaxation.kl_weight_end),
                "), lower it where the KL is near 0, or lower learning_rate.start (now ",
                short_number(config.learning_rate.start), ")");
  return {.alarm = "codebook_collapse",
          .phase = phase,
          .metric = metric,
          .low = config.health.min_perplexity_share * capacity,
          .meaning = str("few of the ", config.model.vocab_size, " codes are in use (codebook collapse)"),
          .remedy = remedy};
}

}  // namespace

std::vector<HealthRule> dvae_health_rules(const DvaeTraining& config) {
  const double log_vocab = std::log(static_cast<double>(config.model.vocab_size));
  const int64_t cells = config.model.grid_size() * config.model.grid_size();
  std::vector<HealthRule> rules;
  if (config.model.quantizer == models::Quantizer::kGumbel) {
    for (const char* phase : {"train", "validation"}) {  // a small batch's own KL may be too noisy to stay out of range
      rules.push_back(kl_at_zero(config, phase, log_vocab));
      rules.push_back(kl_at_maximum(config, phase, log_vocab));
    }
  }
  rules.push_back(codebook_collapse(config, "train", "batch_perplexity", config.trainer.batch_size * cells));
  rules.push_back(codebook_collapse(config, "validation", "perplexity", config.model.vocab_size));
  return rules;
}

}  // namespace dalle::training

#include "dalle/training/learning_rate.h"

#include <algorithm>

#include "dalle/core/error.h"
#include "dalle/core/str.h"
#include "dalle/training/task_support.h"

namespace dalle::training {

std::optional<int64_t> LearningRate::num_halvings(int64_t step) const {
  if (config_.type != optim::ScheduleType::kWarmupHalving) return std::nullopt;
  return optim::num_halvings(config_, step, plateau_.num_halvings());
}

ScheduleEvent LearningRate::halving(int64_t step, double before, const std::string& cause,
                                    const std::string& why) const {
  const double after = at(step);
  return {.event = "halved",
          .cause = cause,
          .message = str("step ", step, ": the learning rate is halved, ", short_number(before), " -> ",
                         short_number(after), " (", why, ")"),
          .values = {{"before", before}, {"learning_rate", after}}};
}

std::optional<ScheduleEvent> LearningRate::listed_halving(int64_t step) const {
  const auto& listed = config_.halve_at;
  const bool is_listed = std::find(listed.begin(), listed.end(), step) != listed.end();
  if (!is_listed || step < config_.warmup_steps || config_.type != optim::ScheduleType::kWarmupHalving) return {};
  return halving(step, 2 * at(step), "halve_at", "learning_rate.halve_at");
}

void LearningRate::require_metric(const std::vector<std::string>& validation_names) const {
  const std::string& metric = config_.plateau.metric;
  if (!watches_validation() ||
      std::find(validation_names.begin(), validation_names.end(), metric) != validation_names.end())
    return;
  std::string known;
  for (const auto& name : validation_names) known += (known.empty() ? "" : ", ") + name;
  throw ConfigError(Problem{"learning_rate.plateau.metric",
                            known.empty() ? "validation data (validation.sources)" : "one of: " + known,
                            "'" + metric + "'", ""});
}

std::optional<ScheduleEvent> LearningRate::observe(int64_t step, const NamedValues& validation) {
  if (!watches_validation() || step < config_.warmup_steps) return std::nullopt;
  const std::string& metric = config_.plateau.metric;
  const auto found =
      std::find_if(validation.begin(), validation.end(), [&](const auto& entry) { return entry.first == metric; });
  TORCH_CHECK_VALUE(found != validation.end(), "[learning rate] a validation without ", metric);
  const double before = at(step);
  const auto& listed = config_.halve_at;
  const auto passed = std::upper_bound(listed.begin(), listed.end(), step);
  const optim::Plateau::OtherHalvings others{.count = passed - listed.begin(),
                                             .last = passed == listed.begin() ? 0 : *(passed - 1)};
  const int64_t since = std::max(plateau_.since(), others.last);
  if (!plateau_.observe(step, found->second, others)) return std::nullopt;
  return halving(step, before, "plateau", str(metric, " has not improved since step ", since));
}

}  // namespace dalle::training

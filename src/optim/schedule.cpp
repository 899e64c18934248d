#include "dalle/optim/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "dalle/core/error.h"
#include "dalle/core/str.h"

namespace dalle::optim {

double cosine(double start, double end, int64_t steps, int64_t step) {
  if (step >= steps) return end;
  if (step <= 0) return start;
  const double phase = std::numbers::pi * static_cast<double>(step) / static_cast<double>(steps);
  return end + (start - end) * (1 + std::cos(phase)) / 2;
}

void ScheduleConfig::validate(const std::string& place) const {
  for (size_t i = 1; i < halve_at.size(); ++i) {
    if (halve_at[i] > halve_at[i - 1]) continue;
    throw ConfigError(Problem{
        .place = place, .expected = "rising steps in halve_at", .got = str(halve_at[i], " after ", halve_at[i - 1])});
  }
  if (!halve_at.empty() && halve_at.front() < warmup_steps) {
    throw ConfigError(Problem{.place = place,
                              .expected = str("steps in halve_at from warmup_steps (", warmup_steps, ") on"),
                              .got = str(halve_at.front())});
  }
  if (type != ScheduleType::kWarmupHalving && (!halve_at.empty() || plateau.patience_steps > 0)) {
    throw ConfigError(Problem{.place = place,
                              .expected = "halve_at and plateau.patience_steps with type warmup_halving only",
                              .got = str("type ", enum_name(type)),
                              .hint = "set type: warmup_halving, or leave them out"});
  }
}

int64_t num_halvings(const ScheduleConfig& config, int64_t step, int64_t plateau_halvings) {
  if (config.type != ScheduleType::kWarmupHalving) return 0;
  const auto listed = std::upper_bound(config.halve_at.begin(), config.halve_at.end(), step);
  return (listed - config.halve_at.begin()) + plateau_halvings;
}

double value(const ScheduleConfig& config, int64_t step, int64_t plateau_halvings) {
  if (step < config.warmup_steps) {
    return config.start * static_cast<double>(std::max<int64_t>(step, 0)) / static_cast<double>(config.warmup_steps);
  }
  switch (config.type) {
    case ScheduleType::kConstant:
      return config.start;
    case ScheduleType::kCosine:
      return cosine(config.start, config.end, config.steps, step - config.warmup_steps);
    case ScheduleType::kWarmupHalving:
      return std::ldexp(config.start, -static_cast<int>(num_halvings(config, step, plateau_halvings)));
  }
  return config.start;
}

}  // namespace dalle::optim

// Schedules of the learning rate, the relaxation's temperature and the KL weight (paper A.2, B.2), as pure functions of
// the step, so a resumed run has nothing to restore.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dalle/core/enum_names.h"
#include "dalle/optim/plateau.h"

namespace dalle::optim {

/// Half a cosine from `start` at step 0 to `end` at step `steps`, exactly `end` from there on:
/// end + (start - end) (1 + cos(pi step / steps)) / 2. `end` where steps < 1.
double cosine(double start, double end, int64_t steps, int64_t step);

enum class ScheduleType { kConstant, kCosine, kWarmupHalving };

struct ScheduleConfig {
  ScheduleType type = ScheduleType::kConstant;
  double start = 0;
  double end = 0;
  int64_t steps = 1;
  int64_t warmup_steps = 0;
  std::vector<int64_t> halve_at;
  PlateauConfig plateau;

  static void visit_fields(auto& self, auto&& field) {
    field(
        "type", self.type,
        "constant = start; cosine = start to end over steps; warmup_halving = start, halved at halve_at and by plateau",
        {.changeable = true});
    field("start", self.start, "value at the beginning, after the warm-up", {.changeable = true});
    field("end", self.end, "value from the end of a cosine on", {.changeable = true});
    field("steps", self.steps, "length of a cosine", {.min = 1, .unit = "steps", .changeable = true});
    field("warmup_steps", self.warmup_steps, "the value rises linearly from 0 over these first steps",
          {.min = 0, .unit = "steps", .changeable = true});
    field("halve_at", self.halve_at, "steps from which on the value is halved once more, for warmup_halving",
          {.min = 0, .unit = "steps", .changeable = true});
    field("plateau", self.plateau, "halvings of warmup_halving where validation stops improving");
  }
  /// Throws ConfigError where halve_at does not rise, or a key is given that `type` does not use.
  void validate(const std::string& place) const;
};

/// The value for the update after `step` updates were done (the first has step 0). During the warm-up it is
/// start * step / warmup_steps: 0 for the first update. A cosine begins after the warm-up.
/// plateau_halvings: those that a Plateau has asked for so far.
double value(const ScheduleConfig& config, int64_t step, int64_t plateau_halvings = 0);

/// Halvings in force at `step` of warmup_halving, listed ones and the plateau's; 0 for other types.
int64_t num_halvings(const ScheduleConfig& config, int64_t step, int64_t plateau_halvings = 0);

}  // namespace dalle::optim

namespace dalle {
template <>
struct EnumNames<optim::ScheduleType> {
  static constexpr EnumName<optim::ScheduleType> values[] = {{optim::ScheduleType::kConstant, "constant"},
                                                             {optim::ScheduleType::kCosine, "cosine"},
                                                             {optim::ScheduleType::kWarmupHalving, "warmup_halving"}};
};
}  // namespace dalle

// Watches a run's own numbers and says, with a remedy, when they tell of a failure that the loss alone may hide: a codebook
// that falls out of use, a code that carries nothing or is sure of everything. A stage names its rules; the loop feeds every
// line of the log and of validation to the monitor, writes what comes back to the log and, as phase "health", to
// metrics.jsonl. Nothing here changes the run.
#pragma once

#include <cstdint>
#include <limits>
#include <map>
#include <string>
#include <vector>

#include "dalle/training/metrics.h"

namespace dalle::training {

/// When a number outside its range becomes a warning.
struct HealthConfig {
  int64_t grace_steps = 1000;
  int64_t patience_steps = 500;
  int64_t repeat_steps = 10000;

  static void visit_fields(auto& self, auto&& field) {
    field("grace_steps", self.grace_steps, "no warnings before this step: every run starts with useless codes",
          {.min = 0, .unit = "steps", .changeable = true});
    field("patience_steps", self.patience_steps, "a number must be out of its range for so long before it is a warning",
          {.min = 0, .unit = "steps", .changeable = true});
    field("repeat_steps", self.repeat_steps, "a warning that goes on is repeated after so many steps; 0 = never",
          {.min = 0, .unit = "steps", .changeable = true});
  }
};

/// A metric that should stay within [low, high].
struct HealthRule {
  std::string alarm;   // "codebook_collapse"
  std::string phase;   // whose lines hold the metric: "train" or "validation"
  std::string metric;  // "kl"
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
  std::string meaning;  // "the codes carry nothing of the picture (posterior collapse)"
  std::string remedy;   // what to change, with the keys' names
};

struct HealthEvent {
  std::string alarm;
  std::string message;  // the line for the log, remedy included
  NamedValues values;   // the metric and the bound it broke
};

class HealthMonitor {
 public:
  HealthMonitor(const HealthConfig& config, std::vector<HealthRule> rules);

  /// Looks at one line of numbers. A rule gives an event where its metric has been outside on every look for
  /// patience_steps, counted from grace_steps on, and again only after repeat_steps or after it was well in between.
  std::vector<HealthEvent> observe(int64_t step, const std::string& phase, const NamedValues& values);

  /// For what has no range (numbers that are not finite): true where this alarm may be raised now, false where it was
  /// raised less than repeat_steps ago.
  bool may_warn(const std::string& alarm, int64_t step);

 private:
  HealthConfig config_;
  std::vector<HealthRule> rules_;
  std::map<size_t, int64_t> outside_since_;     // rule -> first look outside
  std::map<std::string, int64_t> last_warned_;  // alarm -> step
};

}  // namespace dalle::training

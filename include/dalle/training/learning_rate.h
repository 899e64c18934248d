// The learning rate of a run: the schedule of the config, the halvings that a plateau of validation has asked for, and a
// message for every change, so that metrics.jsonl tells the whole story of a rate that no formula gives.
#pragma once

#include <map>
#include <optional>
#include <string>
#include <vector>

#include "dalle/optim/plateau.h"
#include "dalle/optim/schedule.h"
#include "dalle/training/metrics.h"

namespace dalle::training {

/// A line of phase "schedule" in metrics.jsonl.
struct ScheduleEvent {
  std::string event;    // "halved"
  std::string cause;    // "halve_at", "plateau"
  std::string message;  // the line for the log
  NamedValues values;
};

class LearningRate {
 public:
  explicit LearningRate(const optim::ScheduleConfig& config) : config_(config), plateau_(config.plateau) {}

  /// For the update after `step` updates were done.
  double at(int64_t step) const { return optim::value(config_, step, plateau_.num_halvings()); }
  /// In force at `step`; none for schedules that do not halve.
  std::optional<int64_t> num_halvings(int64_t step) const;
  bool watches_validation() const { return config_.type == optim::ScheduleType::kWarmupHalving && plateau_.is_on(); }

  /// The event of a halving listed in halve_at that the update after `step` updates is the first to use.
  std::optional<ScheduleEvent> listed_halving(int64_t step) const;
  /// Throws ConfigError where validation is watched and plateau.metric is not among its names.
  void require_metric(const std::vector<std::string>& validation_names) const;
  /// Looks at the numbers of a validation after `step` updates, plateau.metric among them; an event where they make a
  /// halving due. The warm-up is not looked at.
  std::optional<ScheduleEvent> observe(int64_t step, const NamedValues& validation);

  std::map<std::string, double> state() const { return plateau_.state(); }
  void load_state(const std::map<std::string, double>& scalars) { plateau_.load_state(scalars); }

 private:
  ScheduleEvent halving(int64_t step, double before, const std::string& cause, const std::string& why) const;

  optim::ScheduleConfig config_;
  optim::Plateau plateau_;
};

}  // namespace dalle::training

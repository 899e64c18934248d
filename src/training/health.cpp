#include "dalle/training/health.h"

#include <algorithm>
#include <cmath>

#include "dalle/core/str.h"
#include "dalle/training/task_support.h"

namespace dalle::training {
namespace {

// The bound that a value breaks: text and number. A value that is not finite breaks none; the loop's own check names it.
struct Broken {
  bool is_broken = false;
  std::string text;
  double bound = 0;
};

Broken broken_bound(const HealthRule& rule, double value) {
  if (value < rule.low) return {true, "below " + short_number(rule.low), rule.low};
  if (value > rule.high) return {true, "above " + short_number(rule.high), rule.high};
  return {};
}

HealthEvent event_of(const HealthRule& rule, int64_t step, int64_t since, double value, const Broken& broken) {
  const std::string lasting = since < step ? str(" since step ", since) : "";
  return {.alarm = rule.alarm,
          .message = str("step ", step, ": ", rule.phase, " ", rule.metric, " is ", short_number(value), ", ",
                         broken.text, lasting, ": ", rule.meaning, "\n  hint: ", rule.remedy),
          .values = {{rule.metric, value}, {"bound", broken.bound}}};
}

}  // namespace

HealthMonitor::HealthMonitor(const HealthConfig& config, std::vector<HealthRule> rules)
    : config_(config), rules_(std::move(rules)) {}

bool HealthMonitor::may_warn(const std::string& alarm, int64_t step) {
  const auto last = last_warned_.find(alarm);
  const bool again =
      config_.repeat_steps > 0 && last != last_warned_.end() && step - last->second >= config_.repeat_steps;
  if (last != last_warned_.end() && !again) return false;
  last_warned_[alarm] = step;
  return true;
}

std::vector<HealthEvent> HealthMonitor::observe(int64_t step, const std::string& phase, const NamedValues& values) {
  std::vector<HealthEvent> events;
  if (step < config_.grace_steps) return events;
  for (size_t i = 0; i < rules_.size(); ++i) {
    const HealthRule& rule = rules_[i];
    if (rule.phase != phase) continue;
    const auto found =
        std::find_if(values.begin(), values.end(), [&](const auto& v) { return v.first == rule.metric; });
    if (found == values.end()) continue;
    const Broken broken = broken_bound(rule, found->second);
    if (!broken.is_broken) {
      if (outside_since_.erase(i) > 0) last_warned_.erase(rule.alarm);
      continue;
    }
    const int64_t since = outside_since_.try_emplace(i, step).first->second;
    if (step - since < config_.patience_steps) continue;
    if (may_warn(rule.alarm, step)) events.push_back(event_of(rule, step, since, found->second, broken));
  }
  return events;
}

}  // namespace dalle::training

#include "dalle/optim/plateau.h"

#include <algorithm>
#include <cmath>

#include "dalle/core/random.h"

namespace dalle::optim {

bool Plateau::observe(int64_t step, double value, OtherHalvings others) {
  if (!is_on()) return false;
  if (std::isfinite(value) && (!has_best_ || value < best_ - config_.min_improvement)) {
    has_best_ = true;
    best_ = value;
    since_ = step;
    return false;
  }
  if (!has_best_ || num_halvings_ + others.count >= config_.max_halvings) return false;
  since_ = std::max(since_, others.last);
  if (step - since_ < config_.patience_steps) return false;
  since_ = step;
  ++num_halvings_;
  return true;
}

namespace {

/// A name as a number that a double holds.
double name_number(const std::string& name) { return static_cast<double>(stable_hash(name) >> 12); }

}  // namespace

std::map<std::string, double> Plateau::state() const {
  if (!has_best_ && num_halvings_ == 0) return {};
  std::map<std::string, double> state{{"plateau_halvings", static_cast<double>(num_halvings_)}};
  if (!has_best_) return state;
  state["plateau_best"] = best_;
  state["plateau_since"] = static_cast<double>(since_);
  state["plateau_metric"] = name_number(config_.metric);
  return state;
}

void Plateau::load_state(const std::map<std::string, double>& scalars) {
  const auto best = scalars.find("plateau_best"), since = scalars.find("plateau_since"),
             halvings = scalars.find("plateau_halvings"), metric = scalars.find("plateau_metric");
  const bool is_of_this_metric = metric == scalars.end() || metric->second == name_number(config_.metric);
  has_best_ = best != scalars.end() && since != scalars.end() && is_of_this_metric;
  best_ = has_best_ ? best->second : 0;
  since_ = has_best_ ? static_cast<int64_t>(since->second) : 0;
  num_halvings_ = halvings != scalars.end() ? static_cast<int64_t>(halvings->second) : 0;
}

}  // namespace dalle::optim

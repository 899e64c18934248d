// Halving of the learning rate where a validation number stops falling (paper B.2 halved by hand "at a plateau"; this is
// the rule that stands in for the hand). Its state goes into checkpoints, so a resumed run decides the same.
#pragma once

#include <cstdint>
#include <map>
#include <string>

namespace dalle::optim {

struct PlateauConfig {
  std::string metric = "loss";
  int64_t patience_steps = 0;
  double min_improvement = 0;
  int64_t max_halvings = 5;

  static void visit_fields(auto& self, auto&& field) {
    field("metric", self.metric, "validation number that should fall: a key of phase validation in metrics.jsonl",
          {.changeable = true});
    field("patience_steps", self.patience_steps,
          "halve once it has not fallen for so many steps since its best or the last halving; 0 = never",
          {.min = 0, .unit = "steps", .changeable = true});
    field("min_improvement", self.min_improvement, "what it must fall by to count, in its own unit",
          {.min = 0, .changeable = true});
    field("max_halvings", self.max_halvings, "halvings in all, with those of halve_at (paper: 5)",
          {.min = 0, .changeable = true});
  }
};

class Plateau {
 public:
  explicit Plateau(const PlateauConfig& config) : config_(config) {}

  bool is_on() const { return config_.patience_steps > 0; }
  /// Halvings from elsewhere (a list in the config) that are in force at a validation, and the step of the last one.
  struct OtherHalvings {
    int64_t count = 0, last = 0;
  };
  /// One validation after `step` updates; call in rising order of steps. True where it makes a halving due. A value that
  /// is not finite is no improvement.
  bool observe(int64_t step, double value, OtherHalvings others);
  bool observe(int64_t step, double value) { return observe(step, value, {}); }
  int64_t num_halvings() const { return num_halvings_; }
  /// Step of the last improvement, or of the last halving where that was later; 0 before the first observation.
  int64_t since() const { return since_; }

  /// Numbers for a checkpoint, under names that begin with "plateau_"; none before the first observation.
  std::map<std::string, double> state() const;
  /// Takes its own names from a checkpoint's numbers; those that are missing mean a detector that has seen nothing. Of another
  /// metric the halvings count, and no best value.
  void load_state(const std::map<std::string, double>& scalars);

 private:
  PlateauConfig config_;
  bool has_best_ = false;
  double best_ = 0;
  int64_t since_ = 0;
  int64_t num_halvings_ = 0;
};

}  // namespace dalle::optim

// What the loop says of itself: lines of metrics.jsonl, validation, pictures, schedule and speed.
#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <cmath>

#include "dalle/config/node.h"
#include "dalle/core/logging.h"
#include "dalle/core/number_text.h"
#include "dalle/core/str.h"
#include "dalle/optim/gradients.h"
#include "dalle/training/trainer.h"

namespace dalle::training {

void Trainer::log_step(double learning_rate, const Tensor& norm, const std::vector<optim::BlockNorm>& block_norms) {
  settle_updates();
  NamedValues values;
  cli::StatusUpdate update{.step = step_};
  for (const auto& [name, value] : step_metrics_) {
    values.emplace_back(name, value.item<double>());
    if (name == "loss")
      update.loss = values.back().second;
    else
      update.extra.emplace_back(values.back());
  }
  for (const auto& value : task_.batch_values()) values.push_back(value);
  values.emplace_back("learning_rate", learning_rate);
  if (const auto halvings = learning_rate_.num_halvings(step_ - 1)) {
    values.emplace_back("learning_rate_halvings", static_cast<double>(*halvings));
  }
  for (const auto& value : task_.schedule_values(step_ - 1)) values.push_back(value);
  const TimeSpent spent = throughput_.spent();
  update.items_per_second = spent.items_per_second();
  update.wait_share = spent.wait_share();
  values.emplace_back(task_.throughput_unit().first + "_per_second", update.items_per_second);
  values.emplace_back("data_wait_share", *update.wait_share);
  values.emplace_back("prepare_share", spent.prepare_share());
  update.mfu = utilisation(update.items_per_second);
  if (update.mfu) values.emplace_back("mfu", *update.mfu);
  values.emplace_back("bad_samples", static_cast<double>(num_bad_samples_));
  if (num_captions_ > 0) values.emplace_back("truncated_captions", static_cast<double>(num_truncated_captions_));
  values.emplace_back("skipped_updates", static_cast<double>(finite_check_.total()));
  values.emplace_back("grad_norm", norm.item<double>());
  for (const auto& [block, block_norm] : block_norms) values.emplace_back("grad_norm/" + block, block_norm);
  if (scaling_) {
    const auto scales = scaling_->values();
    values.insert(values.end(), scales.begin(), scales.end());
  }
  if (is_first_rank()) {
    write_line("train", values);
    status_->update(update);
  }
  unreported_ += spent;
  throughput_.reset();
}

void Trainer::record_schedule(const ScheduleEvent& event) {
  log_info(event.message);
  if (!is_first_rank()) return;
  metrics_->record(step_, "schedule", {{"event", event.event}, {"cause", event.cause}, {"message", event.message}},
                   event.values);
}

void Trainer::record_config_changes(const std::string& saved_config) {
  const auto changes = config::diff(config::parse_yaml(saved_config, "the checkpoint's config"),
                                    config::parse_yaml(setup_.resolved_config, "config"));
  if (!is_first_rank()) return;
  for (const auto& [key, before, after] : changes) {
    if ((before == "[]" && after.empty()) || (before.empty() && after == "[]")) continue;  // its entries tell it
    log_info(str("step ", step_, ": ", key, " changes from ", before.empty() ? "(nothing)" : before, " to ",
                 after.empty() ? "(nothing)" : after));
    metrics_->record(step_, "config", {{"event", "changed"}, {"key", key}, {"before", before}, {"after", after}}, {});
  }
}

std::optional<double> Trainer::utilisation(double items_per_second) const {
  const double flops = task_.cost().flops_per_sample;
  if (setup_.matrix_speed <= 0 || flops <= 0) return std::nullopt;
  const double machine_speed = setup_.matrix_speed * communicator_.world_size();
  return items_per_second / static_cast<double>(task_.throughput_unit().second) * flops / machine_speed;
}

void Trainer::report_speed() {
  if (step_ == reported_step_) return;
  const auto percent = [](double share) { return str(std::lround(100 * share), " %"); };
  unreported_ += throughput_.spent();
  throughput_.reset();
  const double rate = unreported_.items_per_second();
  std::string line = str("speed, steps ", reported_step_ + 1, " to ", step_, ": ", cli::format_rate(rate), " ",
                         task_.throughput_unit().first, "/s; ", percent(unreported_.wait_share()),
                         " of the time waiting for data, ", percent(unreported_.prepare_share()), " preparing batches");
  if (const auto share = utilisation(rate)) {
    line += str("; model FLOPs utilisation ", percent(*share), " of the measured ",
                scaled(setup_.matrix_speed, "FLOP/s"), communicator_.world_size() > 1 ? " of each rank" : "");
  }
  log_info(line);
  reported_step_ = step_;
  unreported_ = {};
}

Metrics Trainer::validate_and_preview(bool validate, bool preview) {
  if (validate) report_speed();
  preview = preview || (validate && task_.previews_with_validation());
  if (validate || preview) settle_updates();
  if (!(validate || preview)) return {};
  preview = preview && task_.has_previews();
  const c10::NoGradGuard no_grad;
  optim::Ema* const ema = ema_ ? &*ema_ : nullptr;
  Metrics values;
  const auto draw_all = [&] { draw(validate, preview); };
  if (sharded_ && !sharded_->stays_whole()) {
    if (validate) sharded_->with_weights_by_blocks(ema, [&] { values = validation(*sharded_); });
    note("gathering weights");
    preview ? sharded_->with_whole_weights(ema, draw_all) : draw_all();
  } else {
    const auto evaluate = [&] {
      if (validate) values = validation(layers::plain_runner());
      draw_all();
    };
    if (sharded_) {
      sharded_->with_whole_weights(ema, evaluate);
    } else {
      std::optional<optim::EmaScope> averages;
      if (ema != nullptr) averages.emplace(*ema);
      evaluate();
    }
  }
  throughput_.reset();
  return values;
}

Metrics Trainer::validation(layers::BlockRunner& runner) {
  note("validation");
  const Metrics values = task_.evaluate(step_, runner);
  if (values.empty()) return values;
  if (is_first_rank()) write_line("validation", values);
  std::string line = str("step ", step_, ": validation");
  for (const auto& [name, value] : values) line += str(" ", name, " ", cli::format_rate(value));
  log_info(line);
  return values;
}

/// On rank 0, for which the others wait.
void Trainer::draw(bool of_validation, bool previews) {
  note("drawing pictures", distributed::Pace::kOpenEnded);
  if (is_first_rank()) {
    if (of_validation) {
      for (const auto& sheet : task_.validation_sheets(step_)) write_sheet(sheet);
    }
    if (previews) {
      for (const auto& sheet : task_.preview(step_)) write_sheet(sheet);
    }
  }
  communicator_.await(0);
}

void Trainer::write_sheet(const Sheet& sheet) {
  generation::write_png(run_->sample_file(sheet.name, step_), sheet.picture);
  tensorboard_->image(step_, sheet.name, sheet.picture);
}

}  // namespace dalle::training

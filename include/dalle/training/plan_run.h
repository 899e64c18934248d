// plan-run: what a run would cost on some devices, for people.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "dalle/training/plan.h"

namespace dalle::training {

struct PlanRunOptions {
  std::filesystem::path config;
  int64_t devices = 1;
  std::string device = "h100";
  std::optional<Sharding> sharding;
  std::optional<int64_t> powersgd_rank;
  Precision precision = Precision::kAuto;
  int64_t micro_batch_size = 0;
  bool state_in_16_bits = false;
  bool average_on_host = false;
  bool scaling = false;

  static void visit_fields(auto& self, auto&& field) {
    field("config", self.config, "a config of train-prior");
    field("devices", self.devices, "devices of the run", {.min = 1});
    field("device", self.device, "h100, a100, v100, cpu, or a file as those of configs/devices/");
    field("sharding", self.sharding,
          "what devices split: none; optimizer = moments and averages; full = weights and gradients too; hybrid = full "
          "within a machine, replicas across machines (paper); null = as the config's trainer.sharding says");
    field("powersgd_rank", self.powersgd_rank,
          "PowerSGD between replicas with so many columns of a whole matrix; 0 = none, null = as the config's "
          "trainer.gradient_compression says (paper, 12 B: 896)",
          {.min = 0});
    field("precision", self.precision, "number format of matrix work; auto = as the config says, or the device can");
    field("micro_batch_size", self.micro_batch_size, "samples of one pass on one device; 0 = as the config says",
          {.min = 0});
    field("state_in_16_bits", self.state_in_16_bits,
          "weights, gradients and error buffers of residual blocks' matrices take 16 bits (paper)");
    field("average_on_host", self.average_on_host, "the average of the weights is kept in host memory (paper)");
    field("scaling", self.scaling, "a table for 1 to 1,024 devices in place of one plan");
  }
};

/// The plan as text. Throws ConfigError for a config, device or layout that does not work.
std::string plan_text(const PlanRunOptions& options);
/// Prints plan_text(); the exit code.
int run_plan(const PlanRunOptions& options);

}  // namespace dalle::training

#include "dalle/training/plan_run.h"

#include <algorithm>
#include <cstdio>
#include <iostream>

#include "dalle/core/dtype_name.h"
#include "dalle/core/error.h"
#include "dalle/core/number_text.h"
#include "dalle/core/str.h"
#include "dalle/training/run_stage.h"

namespace dalle::training {
namespace {

struct Job {
  PriorTraining config;
  models::PriorConfig model;
  DeviceDescription device;
  PlanLayout layout;
};

template <class Config>
bool is_config_of(const std::filesystem::path& file) {
  try {
    config::load_config_file<Config>(file);
    return true;
  } catch (const ConfigError&) {
    return false;
  }
}

/// Refuses configs of the other trainers by name.
PriorTraining load_prior_config(const std::filesystem::path& file) {
  try {
    return config::load_config_file<PriorTraining>(file);
  } catch (const ConfigError&) {
    const char* other = is_config_of<DvaeTraining>(file)   ? "train-dvae"
                        : is_config_of<ClipTraining>(file) ? "train-clip"
                                                           : nullptr;
    if (other == nullptr) throw;
    throw ConfigError(
        Problem{file.string(), "a config of train-prior", str("one of ", other),
                str("plan-run plans priors alone; ", other, " CONFIG --check tells what this one takes")});
  }
}

/// As the options say, or the config. A plan's hybrid groups are machines.
Sharding sharding_of(const PlanRunOptions& options, const TrainerConfig& trainer, int64_t devices_per_machine) {
  if (options.sharding) return *options.sharding;
  const int64_t machine = std::min(options.devices, devices_per_machine), group = trainer.shard_group_size;
  if (trainer.sharding == Sharding::kHybrid && group > 0 && std::min(options.devices, group) != machine) {
    throw ConfigError(Problem{"trainer.shard_group_size", str(machine, ", the devices of a machine"), str(group),
                              "plan-run plans hybrid groups that are whole machines; --sharding hybrid plans them so"});
  }
  return trainer.sharding;
}

Job job_of(const PlanRunOptions& options) {
  if (options.config.empty()) {
    throw ConfigError(Problem{"plan-run", "a config of train-prior", "none", "plan-run configs/paper/prior.yaml"});
  }
  Job job;
  job.config = load_prior_config(options.config);
  if (options.precision != Precision::kAuto) job.config.precision = options.precision;
  job.model = prior_with_sizes(job.config);
  job.device = load_device(options.device, options.config);
  job.layout = {.num_devices = options.devices,
                .sharding = sharding_of(options, job.config.trainer, job.device.devices_per_machine),
                .powersgd_rank = options.powersgd_rank,
                .state_in_16_bits = options.state_in_16_bits,
                .average_on_host = options.average_on_host,
                .micro_batch_size = options.micro_batch_size};
  return job;
}

Timeline timeline_of(const Plan& plan) { return simulate(plan.schedule()); }

std::string percent(double share) { return str(static_cast<int64_t>(100 * share + 0.5), " %"); }

std::string memory_lines(const Plan& plan) {
  const DeviceMemory memory = plan.memory();
  std::string text = "memory of a device:\n";
  const auto line = [&](const char* name, double bytes) {
    char padded[32];
    std::snprintf(padded, sizeof padded, "  %-16s", name);
    if (bytes > 0) text += str(padded, scaled(bytes, "B"), "\n");
  };
  line("weights", memory.weights);
  line("gradients", memory.gradients);
  line("moments", memory.moments);
  line("average", memory.average);
  line("error buffers", memory.error_buffers);
  line("factors", memory.factors);
  line("gathered blocks", memory.gathered);
  line("activations", memory.activations);
  line("logits", memory.logits);
  line("- not at once", memory.not_at_once);
  line("all", memory.total());
  text += str("  ", memory.total() <= plan.usable_memory() ? "fits" : "does NOT fit", " into ",
              scaled(plan.usable_memory(), "B"), "\n");
  const int64_t largest = plan.largest_micro_batch();
  return text + (largest > 0 ? str("largest micro-batch that fits: ", largest, "\n") : "no micro-batch fits\n");
}

std::string sent(const Timeline& line) {
  return str(scaled(line.bytes[static_cast<size_t>(Stream::kLink)], "B"), " by a device within its machine, ",
             scaled(line.bytes[static_cast<size_t>(Stream::kMachine)], "B"), " by a machine to others");
}

std::string one_plan(const Job& job) {
  const Plan plan(job.config, job.model, job.device, job.layout);
  const Timeline line = timeline_of(plan);
  const double flops = plan.flops_per_step(), devices = static_cast<double>(job.layout.num_devices);
  std::string text = dalle::str(
      job.layout.num_devices, " x ", job.device.name, ", sharding ", enum_name(job.layout.sharding), ", matrices in ",
      dtype_name(plan.dtype()), "\n", "parameters: ", grouped_digits(static_cast<int64_t>(plan.num_parameters())), "\n",
      "work of a step: ", scaled(flops, "FLOP"), ", batch ", job.config.trainer.batch_size, " in ",
      plan.micro_batches_per_step(), " micro-batches of ", plan.micro_batch(), " a device\n", memory_lines(plan));
  PlanLayout plain = job.layout;
  plain.powersgd_rank = 0;
  text += str("sent in a step: ", sent(timeline_of(Plan(job.config, job.model, job.device, plain))), "\n");
  if (plan.compression().enabled) {
    text += str("  with ", plan.compressed().describe(plan.compression().rank), "\n  then sent: ", sent(line), "\n");
  }
  const auto busy = [&](Stream stream) { return scaled(line.busy[static_cast<size_t>(stream)], "s"); };
  text += str("a step takes ", scaled(line.seconds, "s"), ": compute ", busy(Stream::kCompute),
              ", network within machines ", busy(Stream::kLink), ", between machines ", busy(Stream::kMachine),
              ", of which ", scaled(std::max(0.0, line.waiting()), "s"), " are not hidden by compute\n");
  const double tokens = static_cast<double>(job.config.trainer.batch_size * job.model.layout().length());
  text += str("  ", scaled(tokens / line.seconds / devices, "tokens/s"), " and ",
              scaled(flops / line.seconds / devices, "FLOP/s"), " a device\n", "days to step ",
              grouped_digits(job.config.trainer.num_steps), ": ",
              scaled(static_cast<double>(job.config.trainer.num_steps) * line.seconds / 86400, "days"), "\n");
  return text;
}

/// Every device takes one micro-batch a step (weak scaling), or a part of the config's batch (strong).
std::string scaling_table(Job job) {
  std::string text =
      "| devices | memory of a device | step, one micro-batch a device | efficiency | sent by a machine | "
      "step at the config's batch | efficiency |\n|---|---|---|---|---|---|---|\n";
  const int64_t batch = job.config.trainer.batch_size,
                micro = std::max<int64_t>(1, job.config.trainer.micro_batch_size);
  double weak_first = 0, strong_first = 0;
  for (int64_t devices = 1; devices <= 1024; devices *= 2) {
    job.layout.num_devices = devices;
    job.config.trainer.batch_size = micro * devices;
    const Plan weak(job.config, job.model, job.device, job.layout);
    const Timeline line = timeline_of(weak);
    if (devices == 1) weak_first = line.seconds;
    const bool fits = weak.memory().total() <= weak.usable_memory();
    text += str("| ", devices, " | ", scaled(weak.memory().total(), "B"), fits ? "" : " (too much)", " | ",
                scaled(line.seconds, "s"), " | ", percent(weak_first / line.seconds), " | ",
                scaled(line.bytes[static_cast<size_t>(Stream::kMachine)], "B"), " | ");
    if (batch % (devices * micro) != 0) {
      text += "- | - |\n";
      continue;
    }
    job.config.trainer.batch_size = batch;
    const double strong = timeline_of(Plan(job.config, job.model, job.device, job.layout)).seconds;
    if (devices == 1) strong_first = strong;
    text += str(scaled(strong, "s"), " | ", percent(strong_first / strong / static_cast<double>(devices)), " |\n");
  }
  return text;
}

}  // namespace

std::string plan_text(const PlanRunOptions& options) {
  const Job job = job_of(options);
  return options.scaling ? scaling_table(job) : one_plan(job);
}

int run_plan(const PlanRunOptions& options) {
  std::cout << plan_text(options);
  return 0;
}

}  // namespace dalle::training

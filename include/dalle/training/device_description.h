// What a kind of device computes, holds and sends: the input of plan-run. Files of configs/devices/ name their sources.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "dalle/config/fields.h"
#include "dalle/core/tensor.h"

namespace dalle::training {

struct DeviceDescription {
  std::string name;
  std::vector<std::string> sources;
  double f32_flops = 1e12;
  double bf16_flops = 0;
  double fp16_flops = 0;
  double achievable_share = 0.5;
  double memory_bytes = 16e9;
  double usable_memory_share = 0.92;
  bool bf16_reads_f32_weights = false;
  double memory_bandwidth = 1e11;
  int64_t devices_per_machine = 1;
  double link_bandwidth = 1e10;
  double link_latency_seconds = 1e-5;
  double machine_bandwidth = 1e9;
  double machine_latency_seconds = 2e-5;

  /// Peak FLOP/s in `dtype` times the share. Throws ConfigError where the device has no such format.
  double matrix_speed(at::ScalarType dtype) const;

  static void visit_fields(auto& self, auto&& field) {
    field("name", self.name, "what is described");
    field("sources", self.sources, "where the numbers are from");
    field("f32_flops", self.f32_flops, "peak FLOP/s (2 per multiply-add) in f32", {.min = 1});
    field("bf16_flops", self.bf16_flops, "the same in bf16, without sparsity; 0 = has none", {.min = 0});
    field("fp16_flops", self.fp16_flops, "the same in fp16; 0 = has none", {.min = 0});
    field("achievable_share", self.achievable_share, "share of the peak that the matrix work of training reaches",
          {.min = 0.001, .max = 1});
    field("memory_bytes", self.memory_bytes, "memory of one device", {.min = 1, .unit = "bytes"});
    field("usable_memory_share", self.usable_memory_share,
          "share of the memory left for tensors by contexts, libraries and gaps", {.min = 0.01, .max = 1});
    field("bf16_reads_f32_weights", self.bf16_reads_f32_weights,
          "products in bf16 round f32 weights as they read them, so that no copy in bf16 is kept (CPUs with such "
          "instructions)");
    field("memory_bandwidth", self.memory_bandwidth, "bytes a second that copies reach, reads and writes added",
          {.min = 1});
    field("devices_per_machine", self.devices_per_machine, "devices of one machine", {.min = 1});
    field("link_bandwidth", self.link_bandwidth,
          "bytes a second of a collective within a machine, each way (bus bandwidth of NCCL's tests and the self-test)",
          {.min = 1});
    field("link_latency_seconds", self.link_latency_seconds, "time of one hop within a machine",
          {.min = 0, .unit = "seconds"});
    field("machine_bandwidth", self.machine_bandwidth, "bytes a second that all devices of a machine send together",
          {.min = 1});
    field("machine_latency_seconds", self.machine_latency_seconds, "time of one hop between machines",
          {.min = 0, .unit = "seconds"});
  }
};

/// `name` is a file, or the stem of one in a folder configs/devices/ at or above `beside`, the working directory or the
/// program. Throws ConfigError that lists the known names.
DeviceDescription load_device(const std::string& name, const std::filesystem::path& beside);

}  // namespace dalle::training

// What training a prior costs on many devices, before it is launched: memory of a device by kind, bytes sent, and the time
// of a step. The paper's layout (2.5, appendix E) is sharding hybrid with PowerSGD between machines and state in 16 bits.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "dalle/core/precision.h"
#include "dalle/distributed/powersgd.h"
#include "dalle/training/config.h"
#include "dalle/training/device_description.h"
#include "dalle/training/step_simulation.h"

namespace dalle::training {

/// How a run is spread over devices, where its config does not say it.
struct PlanLayout {
  int64_t num_devices = 1;
  Sharding sharding = Sharding::kNone;
  /// Of a whole matrix, split among its shards; 0 = gradients are sent as they are, none = as the config's
  /// trainer.gradient_compression says, from which all else of it comes.
  std::optional<int64_t> powersgd_rank;
  /// Weights, gradients, error buffers and factors of residual blocks' matrices take 16 bits, and compressed gradients go
  /// straight into the error buffers (paper: yes; this program keeps them until the update).
  bool state_in_16_bits = false;
  bool average_on_host = false;  // the average of the weights takes no device memory (paper: yes)
  int64_t micro_batch_size = 0;  // 0 = as the config says, or a device's whole share
};

/// A residual block, or the embeddings or heads: what is gathered, computed and reduced at once.
struct ModelUnit {
  std::string name;
  double forward_flops = 0;    // of a sample
  double forward_traffic = 0;  // bytes of memory that a sample's forward pass moves between matrix products
  double other_numbers = 0;    // f32 always: embeddings, heads, gains, biases
  std::vector<distributed::CompressedMatrix> matrices;
  std::vector<distributed::CompressedMatrix> compressed;  // what of them PowerSGD sends, of all ranks that share a copy

  double matrix_numbers() const;
  double numbers() const { return matrix_numbers() + other_numbers; }
};

/// Bytes of one device.
struct DeviceMemory {
  double weights = 0, gradients = 0, moments = 0, average = 0, error_buffers = 0;
  double factors = 0;   // PowerSGD's P, Q and fixed Q0
  double gathered = 0;  // whole weights and gradients of the blocks at work, where they are sharded
  double activations = 0, logits = 0;
  double not_at_once = 0;  // part of the sum of these that is never held at one time

  /// What stays from step to step, averages apart.
  double state() const { return weights + moments + error_buffers; }
  double total() const {
    return weights + gradients + moments + average + error_buffers + factors + gathered + activations + logits -
           not_at_once;
  }
};

class Plan {
 public:
  /// `model`: of the config, with all sizes known. Throws ConfigError where the batch cannot be shared out, where the
  /// layout does not fit the device's machines, or where its format is unknown to the device.
  Plan(const PriorTraining& config, const models::PriorConfig& model, const DeviceDescription& device,
       const PlanLayout& layout);

  double num_parameters() const;
  /// Matrix work of all samples, forward and backward.
  double flops_per_step() const;
  DeviceMemory memory() const { return memory(micro_batch_); }
  DeviceMemory memory(int64_t micro_batch) const;
  double usable_memory() const { return device_.memory_bytes * device_.usable_memory_share; }
  /// The largest that fits and divides the device's share of the batch; 0 = none.
  int64_t largest_micro_batch() const;
  int64_t micro_batch() const { return micro_batch_; }
  int64_t micro_batches_per_step() const { return device_batch_ / micro_batch_; }
  at::ScalarType dtype() const { return compute_.dtype; }
  /// Devices over which sharded numbers are split, and groups of them.
  int64_t group_size() const { return group_; }
  int64_t num_replicas() const { return layout_.num_devices / group_; }
  /// Part of the compressed matrices' numbers that is not sent between replicas, cut as training cuts them; 0 without PowerSGD.
  double compression_rate() const { return compressed_.matrix_rate(); }
  /// Of all devices that share one copy.
  const CompressionSizes& compressed() const { return compressed_; }
  /// As the layout and the config have it together; not enabled where there is one replica.
  const CompressionConfig& compression() const { return compression_; }
  /// A step's tasks, in the order in which they are issued.
  std::vector<StepTask> schedule() const;
  const std::vector<ModelUnit>& units() const { return units_; }

 private:
  friend class StepSchedule;
  void cut_units();
  bool is_sharded() const { return layout_.sharding == Sharding::kFull || layout_.sharding == Sharding::kHybrid; }
  double matrix_bytes() const { return layout_.state_in_16_bits ? 2 : 4; }
  double matrix_numbers() const;
  double largest_unit() const;
  /// Of a unit's weights or gradients; and of its weights on their way to be used for a block's length.
  double stored_bytes(const ModelUnit& unit) const;
  double sent_bytes(const ModelUnit& unit) const;
  double gathered_for(bool is_head) const;

  PriorTraining config_;
  models::PriorConfig model_;
  DeviceDescription device_;
  PlanLayout layout_;
  models::PriorCompute compute_;
  std::vector<ModelUnit> units_;
  CompressionConfig compression_;
  CompressionSizes compressed_;
  int64_t group_ = 1, device_batch_ = 1, micro_batch_ = 1;
};

}  // namespace dalle::training

#include "dalle/training/plan.h"

#include <c10/core/ScalarType.h>

#include <algorithm>
#include <map>

#include "dalle/core/error.h"
#include "dalle/core/str.h"
#include "dalle/models/summary.h"
#include "dalle/optim/parameter_groups.h"
#include "dalle/training/sharded_model.h"

namespace dalle::training {
namespace {

double number(int64_t value) { return static_cast<double>(value); }

/// Numbers of width dim that a layer's training step reads and writes per token between its matrix products: two layer
/// norms, attention's four tensors, the MLP's hidden layer, and their gradients. A third of them in the forward pass.
constexpr double kVectorsPerLayer = 36;

std::string unit_of(const std::string& name) {
  const size_t found = name.find("resblocks.");
  if (found == std::string::npos) return name.find("_head") != std::string::npos ? "heads" : "embeddings";
  const size_t begin = found + 10, dot = name.find('.', begin);
  const std::string part = name.substr(dot + 1);
  return name.substr(begin, dot - begin) +
         (part.starts_with("attn") || part.starts_with("ln_1") ? " attention" : " MLP");
}

/// Queries, keys and values are matrices of their own (paper, table 2).
void add_parameter(ModelUnit& unit, const layers::NamedParameter& entry) {
  const Tensor& tensor = entry.parameter->tensor;
  if (!optim::is_resblock_matrix(entry)) {
    unit.other_numbers += number(tensor.numel());
    return;
  }
  const int64_t pieces = entry.name.ends_with("in_proj_weight") ? 3 : 1;
  for (int64_t i = 0; i < pieces; ++i) unit.matrices.push_back({entry.name, tensor.size(0) / pieces, tensor.size(1)});
}

std::vector<ModelUnit> units_of(const models::PriorConfig& config, const models::PriorCompute& compute) {
  const models::Prior prior(config, compute);  // shapes alone
  ModelUnit embeddings{.name = "embeddings"}, heads{.name = "heads"};
  std::vector<ModelUnit> blocks;
  for (const auto& entry : prior.named_parameters()) {
    const std::string name = unit_of(entry.name);
    if (name == embeddings.name || name == heads.name) {
      add_parameter(name == heads.name ? heads : embeddings, entry);
      continue;
    }
    auto at = std::find_if(blocks.begin(), blocks.end(), [&](const ModelUnit& unit) { return unit.name == name; });
    if (at == blocks.end()) at = blocks.insert(at, ModelUnit{.name = name});
    add_parameter(*at, entry);
  }
  const double d = number(config.dim), length = number(config.layout().length()), layers = number(config.num_layers);
  const double text = number(config.text_targets() * (config.text_context - 1));
  const double image = number(config.image_vocab_size * config.image_context());
  const double bytes = number(static_cast<int64_t>(c10::elementSize(compute.dtype)));
  const double head_bytes = number(static_cast<int64_t>(c10::elementSize(compute.head_dtype)));
  heads.forward_flops = 2 * d * (text + image);
  heads.forward_traffic = head_bytes * (text + image);
  embeddings.forward_traffic = 4 * d * length;
  const double mlp = 4 * number(config.mlp_ratio) * d * d * length;
  const double all = models::summarize(prior).forward_flops_per_sample;
  const double attention = (all - heads.forward_flops) / layers - mlp;  // the mean over kinds of attention
  for (auto& block : blocks) {
    block.forward_flops = block.name.ends_with("MLP") ? mlp : attention;
    block.forward_traffic = kVectorsPerLayer / 3 / 2 * bytes * d * length;
  }
  std::vector<ModelUnit> units{embeddings};
  units.insert(units.end(), blocks.begin(), blocks.end());
  units.push_back(heads);
  return units;
}

at::ScalarType dtype_on(const DeviceDescription& device, Precision precision) {
  const auto dtype = precision == Precision::kAuto ? (device.bf16_flops > device.f32_flops ? at::kBFloat16 : at::kFloat)
                     : precision == Precision::kBf16 ? at::kBFloat16
                     : precision == Precision::kFp16 ? at::kHalf
                                                     : at::kFloat;
  device.matrix_speed(dtype);
  return dtype;
}

int64_t group_size(const PlanLayout& layout, const DeviceDescription& device) {
  if (layout.sharding == Sharding::kFull) return layout.num_devices;
  return layout.sharding == Sharding::kHybrid ? std::min(layout.num_devices, device.devices_per_machine) : 1;
}

CompressionConfig compression_of(const PriorTraining& config, const PlanLayout& layout) {
  CompressionConfig compression = config.trainer.gradient_compression;
  if (layout.powersgd_rank) {
    compression.enabled = *layout.powersgd_rank > 0;
    if (compression.enabled) compression.rank = *layout.powersgd_rank;
  }
  if (!compression.enabled) return compression;
  if (layout.sharding == Sharding::kFull || layout.sharding == Sharding::kOptimizer) {
    throw ConfigError(Problem{"--sharding", "none or hybrid with PowerSGD", str(enum_name(layout.sharding)),
                              "PowerSGD compresses what replicas send each other, and there is one replica; leave it "
                              "out with --powersgd-rank 0"});
  }
  if (layout.sharding == Sharding::kHybrid) compression.num_shards = 1;  // the parts of a group's ranks are the shards
  compression.validate(layout.powersgd_rank ? "--powersgd-rank" : "trainer.gradient_compression");
  return compression;
}

}  // namespace

double ModelUnit::matrix_numbers() const {
  double sum = 0;
  for (const auto& matrix : matrices) sum += number(matrix.elements());
  return sum;
}

Plan::Plan(const PriorTraining& config, const models::PriorConfig& model, const DeviceDescription& device,
           const PlanLayout& layout)
    : config_(config),
      model_(model),
      device_(device),
      layout_(layout),
      compute_{dtype_on(device, config.precision), dtype_on(device, config.head_precision)},
      units_(units_of(model, compute_)),
      compression_(compression_of(config, layout)),
      group_(training::group_size(layout, device)) {
  const int64_t devices = layout.num_devices, per_machine = std::min(devices, device.devices_per_machine);
  const int64_t batch = config.trainer.batch_size;
  if (devices < 1 || devices % per_machine != 0) {
    throw ConfigError(Problem{"--devices", str("whole machines of ", per_machine, " devices"), str(devices), ""});
  }
  if (batch % devices != 0) {
    throw ConfigError(Problem{"--devices", str("a divisor of trainer.batch_size ", batch), str(devices),
                              "every device takes as many samples of a step"});
  }
  device_batch_ = batch / devices;
  const int64_t wanted = layout.micro_batch_size > 0 ? layout.micro_batch_size : config.trainer.micro_batch_size;
  micro_batch_ = wanted > 0 ? wanted : device_batch_;
  if (device_batch_ % micro_batch_ != 0) {
    throw ConfigError(Problem{layout.micro_batch_size > 0 ? "--micro-batch-size" : "trainer.micro_batch_size",
                              str("a divisor of a device's ", device_batch_, " samples"), str(micro_batch_), ""});
  }
  if (num_replicas() == 1) compression_.enabled = false;  // nothing is sent
  if (compression_.enabled) cut_units();
}

void Plan::cut_units() {
  const models::Prior prior(model_, compute_);  // shapes alone
  const auto parameters = prior.named_parameters();
  std::map<std::string, ModelUnit*> units;
  for (auto& unit : units_) units[unit.name] = &unit;
  for (int64_t part = 0; part < group_; ++part) {
    const auto pieces = group_ == 1 ? whole_pieces(parameters) : pieces_of_part(parameters, group_, part);
    compressed_ += compression_sizes(pieces, compression_);
    for (auto& matrix : compressed_matrices(pieces, compression_)) {
      units.at(unit_of(matrix.name))->compressed.push_back(std::move(matrix));
    }
  }
}

double Plan::num_parameters() const {
  double sum = 0;
  for (const auto& unit : units_) sum += unit.numbers();
  return sum;
}

double Plan::matrix_numbers() const {
  double sum = 0;
  for (const auto& unit : units_) sum += unit.matrix_numbers();
  return sum;
}

double Plan::largest_unit() const {
  double largest = 0;
  for (const auto& unit : units_) largest = std::max(largest, unit.matrix_numbers());
  return largest;
}

double Plan::flops_per_step() const {
  double sum = 0;
  for (const auto& unit : units_) sum += unit.forward_flops;
  return 3 * sum * number(config_.trainer.batch_size);
}

DeviceMemory Plan::memory(int64_t micro_batch) const {
  const double matrices = matrix_numbers(), others = num_parameters() - matrices;
  const double shards = is_sharded() ? number(group_) : 1;
  const double state_shards = layout_.sharding == Sharding::kOptimizer ? number(layout_.num_devices) : shards;
  const double moment_bytes = config_.optimizer.moments == optim::Moments::kF16 ? 2 : 4;
  DeviceMemory memory;
  memory.weights = (matrix_bytes() * matrices + 4 * others) / shards;
  memory.moments = 2 * (moment_bytes * matrices + 4 * others) / state_shards;
  if (config_.trainer.ema_decay > 0 && !layout_.average_on_host)
    memory.average = 4 * (matrices + others) / state_shards;
  const bool error_in_16_bits =
      layout_.state_in_16_bits || compression_.error_buffers == distributed::ErrorFormat::kF16;
  for (const auto& unit : units_) {
    for (const auto& matrix : unit.compressed) {
      const int64_t fixed = matrix.columns(compression_.rank) * std::max(matrix.rows, matrix.cols);
      memory.error_buffers += (error_in_16_bits ? 2 : 4) * number(matrix.elements()) / number(group_);
      memory.factors += matrix_bytes() * number(matrix.factor_elements(compression_.rank) + fixed) / number(group_);
    }
  }
  if (compression_.enabled && layout_.state_in_16_bits) {
    memory.gradients = matrix_bytes() * largest_unit() / shards + 4 * others / shards;  // a block's at a time
  } else {
    // With sharding optimizer they are whole only while those of several passes add up.
    const bool are_split = is_sharded() || device_batch_ == micro_batch;
    memory.gradients = (matrix_bytes() * matrices + 4 * others) / (are_split ? state_shards : 1);
  }
  const auto parts = models::activation_parts(model_, compute_, micro_batch, config_.trainer.activation_checkpointing);
  const bool gathers = is_sharded() && group_ > 1;
  const bool casts = !(device_.bf16_reads_f32_weights && compute_.dtype == at::kBFloat16);
  const double kept = parts.blocks + (casts && !gathers && !layout_.state_in_16_bits ? parts.weight_casts : 0);
  const double in_block = kept + parts.block_work + (gathers ? gathered_for(false) : 0);
  const double in_head = kept + parts.heads + (gathers ? gathered_for(true) : 0);
  memory.activations = kept + parts.block_work;
  memory.logits = parts.heads;
  memory.gathered = gathers ? std::max(gathered_for(false), gathered_for(true)) : 0;
  double peak = memory.gradients + std::max(in_head, in_block);
  // A single pass on one device makes gradients as it frees activations: at first there are the heads' alone. Other runs
  // hold sums of gradients all the time.
  if (layout_.num_devices == 1 && device_batch_ == micro_batch) {
    peak = std::max({memory.gradients, in_head, in_block + parts.head_gradients});
  }
  memory.not_at_once = memory.gradients + memory.activations + memory.logits + memory.gathered - peak;
  return memory;
}

double Plan::stored_bytes(const ModelUnit& unit) const {
  return matrix_bytes() * unit.matrix_numbers() + 4 * unit.other_numbers;
}

double Plan::sent_bytes(const ModelUnit& unit) const {
  return number(static_cast<int64_t>(c10::elementSize(compute_.dtype))) * unit.matrix_numbers() +
         4 * unit.other_numbers;
}

/// Where all activations are held: at the heads, whose gradient is counted with the logits, with the last block, which their
/// backward pass fetches; or at the last block with the one before it, its whole gradient and that of the heads. Weights are
/// whole as they are stored, but on their way in the compute type; those of embeddings and heads for the whole step
/// (training/sharded_model.h).
double Plan::gathered_for(bool is_head) const {
  const auto bytes = [&](const ModelUnit& unit) { return stored_bytes(unit); };
  const ModelUnit &heads = units_.back(), &last = units_[units_.size() - 2], &before = units_[units_.size() - 3];
  const double root = bytes(units_.front()) + bytes(heads);
  return root + (is_head ? bytes(last) : 2 * bytes(last) + sent_bytes(before) + bytes(heads));
}

int64_t Plan::largest_micro_batch() const {
  int64_t largest = 0;
  for (int64_t size = 1; size <= device_batch_; ++size) {
    if (device_batch_ % size == 0 && memory(size).total() <= usable_memory()) largest = size;
  }
  return largest;
}

}  // namespace dalle::training

#include "dalle/training/gradient_compression.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <functional>
#include <set>

#include "dalle/core/error.h"
#include "dalle/core/number_text.h"
#include "dalle/core/str.h"
#include "dalle/optim/parameter_groups.h"

namespace dalle::training {
namespace {

constexpr std::string_view kPrefix = "powersgd.";

struct NamedPart {
  distributed::CompressedMatrix matrix;
  layers::Parameter* parameter;
  int64_t first_row;
};

/// The matrices that a parameter's gradient is compressed as; none where it is not.
std::vector<NamedPart> parts_of(const layers::NamedParameter& entry, int64_t rank) {
  if (!optim::is_resblock_matrix(entry)) return {};
  const Tensor& tensor = entry.parameter->tensor;
  const bool is_qkv = entry.name.ends_with("in_proj_weight");
  const int64_t pieces = is_qkv ? 3 : 1, rows = tensor.size(0) / pieces, cols = tensor.numel() / tensor.size(0);
  std::vector<NamedPart> parts;
  for (int64_t piece = 0; piece < pieces; ++piece) {
    const std::string name = is_qkv ? str(entry.name, ".", "qkv"[piece]) : entry.name;
    parts.push_back({{name, rows, cols}, entry.parameter, piece * rows});
    if (parts.back().matrix.factor_elements(rank) >= parts.back().matrix.elements()) return {};
  }
  return parts;
}

std::vector<NamedPart> all_parts(const std::vector<layers::NamedParameter>& parameters, int64_t rank) {
  std::vector<NamedPart> parts;
  for (const auto& entry : parameters) {
    if (!entry.parameter->tensor.requires_grad()) continue;
    for (auto& part : parts_of(entry, rank)) parts.push_back(std::move(part));
  }
  return parts;
}

distributed::PowerSgd make_powersgd(const std::vector<layers::NamedParameter>& parameters,
                                    const distributed::PowerSgdConfig& config, uint64_t seed) {
  std::vector<distributed::CompressedMatrix> matrices;
  for (auto& part : all_parts(parameters, config.rank)) matrices.push_back(std::move(part.matrix));
  const auto options = parameters.empty() ? at::TensorOptions(at::kFloat) : parameters[0].parameter->tensor.options();
  return {std::move(matrices), config, seed, options.requires_grad(std::nullopt)};
}

}  // namespace

GradientCompression::GradientCompression(const std::vector<layers::NamedParameter>& parameters,
                                         const distributed::PowerSgdConfig& config, uint64_t seed,
                                         distributed::Communicator& ranks)
    : ranks_(ranks), powersgd_(make_powersgd(parameters, config, seed)), rank_(config.rank) {
  for (const auto& part : all_parts(parameters, config.rank)) {
    parts_.push_back({part.parameter, part.first_row, part.matrix.rows});
  }
  for (const auto& [name, parameter] : parameters) {
    if (parameter->tensor.requires_grad()) present_.push_back(parameter);
  }
}

/// Which parameters have gradients is the model's matter, the same in every step: so ranks agree on it once.
void GradientCompression::plan() {
  Tensor counts = at::empty({static_cast<int64_t>(present_.size())}, at::kLong);
  for (size_t i = 0; i < present_.size(); ++i) {
    counts.mutable_data_ptr<int64_t>()[i] = present_[i]->tensor.grad().defined() ? 1 : 0;
  }
  counts = counts.to(present_.empty() ? at::Device(at::kCPU) : present_[0]->tensor.device());
  ranks_.all_reduce_sum(counts);
  counts = counts.cpu();
  std::vector<layers::Parameter*> present;
  for (size_t i = 0; i < present_.size(); ++i) {
    if (counts.const_data_ptr<int64_t>()[i] > 0) present.push_back(present_[i]);
  }
  present_ = std::move(present);
  const auto is_compressed = [&](const layers::Parameter* parameter) {
    return std::any_of(parts_.begin(), parts_.end(), [&](const Part& part) { return part.parameter == parameter; });
  };
  std::copy_if(present_.begin(), present_.end(), std::back_inserter(others_), std::not_fn(is_compressed));
  is_planned_ = true;
}

Tensor GradientCompression::reduce() {
  const c10::NoGradGuard no_grad;
  if (!is_planned_) plan();
  for (layers::Parameter* parameter : present_) {
    Tensor& gradient = parameter->tensor.mutable_grad();
    if (!gradient.defined()) gradient = at::zeros_like(parameter->tensor.detach());
  }
  std::vector<size_t> group;  // parts that have gradients
  for (size_t i = 0; i < parts_.size(); ++i) {
    const Tensor& gradient = parts_[i].parameter->tensor.grad();
    if (!gradient.defined()) continue;
    powersgd_.add(i, matrix_of(gradient).narrow(0, parts_[i].first_row, parts_[i].num_rows));
    group.push_back(i);
  }
  std::vector<Tensor> others;
  for (const layers::Parameter* parameter : others_) others.push_back(parameter->tensor.grad());
  powersgd_.reduce_factors(group, ranks_);
  const Tensor norm_squared = powersgd_.reduce_rest(others, ranks_);
  for (const size_t i : group) {
    const auto& part = parts_[i];
    const Tensor rows = part.parameter->tensor.grad().narrow(0, part.first_row, part.num_rows);
    rows.copy_(powersgd_.decompress(i).reshape(rows.sizes()));
  }
  return norm_squared.sqrt().to(at::kFloat);
}

double GradientCompression::compression_rate() const {
  int64_t others = 0;
  std::set<const layers::Parameter*> compressed;
  for (const Part& part : parts_) compressed.insert(part.parameter);
  for (const layers::Parameter* parameter : present_) {
    if (!compressed.contains(parameter)) others += parameter->tensor.numel();
  }
  int64_t elements = others, sent = others;
  for (const auto& matrix : powersgd_.matrices()) {
    elements += matrix.elements();
    sent += matrix.factor_elements(rank_);
  }
  return elements == 0 ? 0 : 1 - static_cast<double>(sent) / static_cast<double>(elements);
}

std::string GradientCompression::describe() const {
  int64_t elements = 0, factors = 0;
  for (const auto& matrix : powersgd_.matrices()) {
    elements += matrix.elements();
    factors += matrix.factor_elements(rank_);
  }
  return str("PowerSGD of rank ", rank_, ": ", powersgd_.matrices().size(), " matrices of ", grouped_digits(elements),
             " numbers are sent as ", grouped_digits(factors), "; of all gradients ",
             static_cast<int>(100 * compression_rate() + 0.5), " % are not sent");
}

std::vector<storage::NamedTensor> GradientCompression::state() const {
  const auto sums = powersgd_.error_sums(ranks_);
  std::vector<storage::NamedTensor> state;
  for (size_t i = 0; i < sums.size(); ++i) {
    state.push_back({std::string(kPrefix) + powersgd_.matrices()[i].name, sums[i]});
  }
  return state;
}

void GradientCompression::load_state(std::vector<storage::NamedTensor>& state) {
  std::vector<Tensor> sums;
  for (size_t i = 0; i < powersgd_.matrices().size(); ++i) {
    const std::string name = std::string(kPrefix) + powersgd_.matrices()[i].name;
    const Tensor* sum = storage::find_tensor(state, name);
    sums.push_back(sum != nullptr ? *sum : at::zeros_like(powersgd_.error(i)));
    std::erase_if(state, [&](const auto& entry) { return entry.name == name; });
  }
  for (const auto& entry : state) {
    if (!entry.name.starts_with(kPrefix)) continue;
    throw CheckpointError(Problem{.place = "error buffers",
                                  .expected = "those of the model's matrices",
                                  .got = str("'", entry.name, "'"),
                                  .hint = "it belongs to another model or rank"});
  }
  powersgd_.load_error_sums(sums, ranks_.world_size());
}

}  // namespace dalle::training

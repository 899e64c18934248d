// Checkpoints of a sharded model: pieces out, pieces in.
#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <map>

#include "dalle/core/error.h"
#include "dalle/core/str.h"
#include "dalle/optim/resblock_scaling.h"
#include "sharded_unit.h"

namespace dalle::training {
namespace {

using storage::NamedTensor;
using storage::TensorFiles;
using storage::TensorPiece;

constexpr const char* kMoments[] = {".exp_avg", ".exp_avg_sq"};
constexpr const char* kStep = ".step";
constexpr const char* kSteps = "steps";  // of the optimizer as a whole

TensorPiece whole_piece(const std::string& name, const Tensor& tensor) {
  return {.name = name, .shape = tensor.sizes().vec(), .values = tensor.detach().contiguous().flatten()};
}

}  // namespace

std::vector<TensorPiece> ShardedModel::as_pieces(const std::vector<NamedTensor>& parts) const {
  TORCH_INTERNAL_ASSERT(parts.size() == parts_.size());
  std::vector<TensorPiece> pieces;
  for (size_t u = 0; u < parts.size(); ++u) {
    if (u >= units_.size()) {
      if (part() == 0) pieces.push_back(whole_piece(parts[u].name, parts[u].tensor));
      continue;
    }
    const Unit& unit = *units_[u];
    for (const auto& slice : unit.flat->slices()) {
      const auto& shape = unit.flat->shape(slice.tensor);
      pieces.push_back({.name = unit.parameters[slice.tensor].name,
                        .shape = shape.sizes,
                        .ranges = slice.ranges,
                        .order = shape.order,
                        .values = parts[u].tensor.detach().narrow(0, slice.offset, slice.size())});
    }
  }
  return pieces;
}

std::vector<TensorPiece> ShardedModel::weights_as_pieces() const {
  std::vector<NamedTensor> parts;
  for (const auto& [name, parameter] : parts_) parts.push_back({name, parameter->tensor});
  return as_pieces(parts);
}

std::vector<TensorPiece> ShardedModel::optimizer_as_pieces(const std::vector<NamedTensor>& state) const {
  std::map<std::string, const Tensor*> found;
  for (const auto& [name, tensor] : state) found[name] = &tensor;
  std::vector<TensorPiece> pieces;
  if (part() == 0) pieces.push_back(whole_piece(kSteps, *found.at(kSteps)));
  for (const auto& unit : units_) {
    for (const auto& slice : unit->flat->slices()) {
      const std::string& name = unit->parameters[slice.tensor].name;
      const auto& shape = unit->flat->shape(slice.tensor);
      if (!found.contains(name + kStep)) continue;
      for (const char* moment : kMoments) {
        pieces.push_back({.name = name + moment,
                          .shape = shape.sizes,
                          .ranges = slice.ranges,
                          .order = shape.order,
                          .values = *found.at(name + moment)});
      }
      if (slice.ranges.front().begin == 0) pieces.push_back(whole_piece(name + kStep, *found.at(name + kStep)));
    }
  }
  for (const auto& [name, parameter] : whole_) {
    if (part() != 0 || !found.contains(name + kStep)) continue;
    for (const char* moment : kMoments) pieces.push_back(whole_piece(name + moment, *found.at(name + moment)));
    pieces.push_back(whole_piece(name + kStep, *found.at(name + kStep)));
  }
  return pieces;
}

void ShardedModel::require_tensors_of(const TensorFiles& files, const std::string& place) const {
  for (const auto& [name, parameter] : all_) {
    const auto* shape = files.shape(name);
    const at::IntArrayRef sizes = parameter->tensor.sizes();
    if (shape != nullptr && sizes == at::IntArrayRef(*shape)) continue;
    throw CheckpointError(Problem{.place = place,
                                  .expected = dalle::str("'", name, "' of shape ", sizes),
                                  .got = shape == nullptr ? "none" : dalle::str(at::IntArrayRef(*shape)),
                                  .hint = "it holds another model"});
  }
  if (files.names().size() == all_.size()) return;
  throw CheckpointError(Problem{.place = place,
                                .expected = str(all_.size(), " tensors"),
                                .got = str(files.names().size()),
                                .hint = "it holds another model"});
}

std::vector<NamedTensor> ShardedModel::parts_by(const ReadRanges& read) const {
  std::vector<NamedTensor> parts;
  for (const auto& unit : units_) {
    const Tensor part = at::zeros_like(unit->part.tensor, at::TensorOptions(at::kCPU));
    for (const auto& slice : unit->flat->slices()) {
      const std::string& name = unit->parameters[slice.tensor].name;
      part.narrow(0, slice.offset, slice.size()).copy_(read(name, slice.ranges, unit->flat->shape(slice.tensor).order));
    }
    parts.push_back({unit->part.name, part});
  }
  for (const auto& [name, parameter] : whole_) {
    parts.push_back({name, read(name, {{0, parameter->tensor.numel()}}, {}).view(parameter->tensor.sizes())});
  }
  return parts;
}

std::vector<NamedTensor> ShardedModel::parts_from(const TensorFiles& files, const std::string& place) const {
  require_tensors_of(files, place);
  return parts_by(
      [&](const auto& name, const auto& ranges, const auto& order) { return files.read_ranges(name, ranges, order); });
}

std::vector<NamedTensor> ShardedModel::parts_of(const std::vector<NamedTensor>& weights) const {
  return parts_by([&](const auto& name, const auto& ranges, const auto& order) {
    const Tensor* found = storage::find_tensor(weights, name);
    TORCH_CHECK_VALUE(found != nullptr, "[sharded model] no weights of ", name);
    const Tensor numbers = (order.empty() ? *found : found->permute(order)).reshape({-1});
    std::vector<Tensor> stretches;
    for (const auto& [begin, end] : ranges) stretches.push_back(numbers.slice(0, begin, end));
    return at::cat(stretches);
  });
}

std::vector<NamedTensor> ShardedModel::optimizer_state_from(const TensorFiles& files, const std::string& place) const {
  std::vector<NamedTensor> state{{kSteps, files.read(kSteps)}};
  size_t num_known = 1;
  for (const auto& [name, parameter] : all_) {
    if (files.shape(name + kStep) == nullptr) continue;
    num_known += 1 + std::size(kMoments);
    for (const char* moment : kMoments) {
      const auto* shape = files.shape(name + moment);
      if (shape != nullptr && parameter->tensor.sizes() == at::IntArrayRef(*shape)) continue;
      throw CheckpointError(Problem{.place = str(place, " '", name, moment, "'"),
                                    .expected = dalle::str("shape ", parameter->tensor.sizes()),
                                    .got = shape == nullptr ? "none" : dalle::str(at::IntArrayRef(*shape))});
    }
  }
  const auto names = files.names();  // error buffers and scales are the loop's
  const auto num_others = static_cast<size_t>(std::count_if(names.begin(), names.end(), [](const std::string& name) {
    return GradientCompression::is_state(name) || optim::ResblockScaling::is_state(name);
  }));
  if (num_known + num_others != names.size()) {
    throw CheckpointError(Problem{.place = place,
                                  .expected = "state of the model's parameters",
                                  .got = str(names.size() - num_known - num_others, " other tensors"),
                                  .hint = "it belongs to another model"});
  }
  const auto add = [&](const std::string& name, const auto& read_moment) {
    if (files.shape(name + kStep) == nullptr) return;
    for (const char* moment : kMoments) state.push_back({name + moment, read_moment(name + moment)});
    state.push_back({name + kStep, files.read(name + kStep)});
  };
  for (const auto& unit : units_) {
    for (const auto& slice : unit->flat->slices()) {
      const auto& order = unit->flat->shape(slice.tensor).order;
      add(unit->parameters[slice.tensor].name,
          [&](const std::string& of) { return files.read_ranges(of, slice.ranges, order); });
    }
  }
  for (const auto& [name, parameter] : whole_) add(name, [&](const std::string& of) { return files.read(of); });
  return state;
}

void ShardedModel::load(const std::vector<NamedTensor>& parts) {
  TORCH_INTERNAL_ASSERT(parts.size() == parts_.size());
  const c10::NoGradGuard no_grad;
  for (size_t i = 0; i < parts.size(); ++i) parts_[i].parameter->tensor.copy_(parts[i].tensor);
  after_update();
}

}  // namespace dalle::training

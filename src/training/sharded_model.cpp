#include "dalle/training/sharded_model.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <c10/util/ScopeExit.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <utility>

#include "dalle/core/number_text.h"
#include "dalle/core/str.h"
#include "dalle/layers/linear_function.h"
#include "dalle/optim/parameter_groups.h"
#include "dalle/optim/resblock_scaling.h"
#include "sharded_unit.h"

namespace dalle::training {
namespace {

using distributed::Communicator;
using distributed::FlatShape;
using distributed::Gather;
using layers::NamedParameter;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

struct Callback : torch::CustomClassHolder {
  explicit Callback(std::function<void()> function) : function(std::move(function)) {}
  std::function<void()> function;
};

/// x itself; its gradient passes after a call of `function`.
struct WithCallback : torch::autograd::Function<WithCallback> {
  static Tensor forward(AutogradContext* context, const Tensor& x, const std::function<void()>& function) {
    context->saved_data["callback"] = c10::IValue::make_capsule(c10::make_intrusive<Callback>(function));
    return x.view_as(x);
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto callback = context->saved_data["callback"].toCapsule();
    static_cast<const Callback&>(*callback).function();
    return {grads[0], Tensor()};
  }
};

FlatShape flat_shape_of(const layers::Parameter& parameter) {
  FlatShape shape{.sizes = parameter.tensor.sizes().vec()};
  if (parameter.channels_last) shape.order = {0, 2, 3, 1};
  return shape;
}

/// Of a matrix of a resblock each of several ranks has the shard that the paper gives it, where they divide that axis.
FlatShape sharded_shape_of(const NamedParameter& entry, int64_t num_parts) {
  FlatShape shape = flat_shape_of(*entry.parameter);
  if (num_parts == 1 || !optim::is_resblock_matrix(entry)) return shape;
  const auto axis = optim::shard_axis(entry);
  const int64_t length = axis.by_inputs ? shape.sizes[1] : shape.sizes[0] / axis.num_stacked;
  if (length % num_parts != 0) return shape;
  shape.num_segments = axis.num_stacked;
  if (axis.by_inputs) shape.order = {1, 0};  // so that a shard is one stretch of memory
  return shape;
}

/// A model's parameters: those of each block, -1 for all that are in none, and those that stay whole.
struct Split {
  std::map<int64_t, std::vector<NamedParameter>> units;
  std::vector<NamedParameter> whole;
};

Split split(const std::vector<NamedParameter>& parameters) {
  const auto indices = block_indices(parameters);
  Split split;
  for (size_t i = 0; i < parameters.size(); ++i) {
    const Tensor& tensor = parameters[i].parameter->tensor;
    const bool is_split = tensor.requires_grad() && tensor.numel() > 1;
    (is_split ? split.units[indices[i]] : split.whole).push_back(parameters[i]);
  }
  return split;
}

std::vector<FlatShape> flat_shapes_of(const std::vector<NamedParameter>& parameters, const UnitForm& form,
                                      int64_t num_parts) {
  std::vector<FlatShape> shapes;
  for (const auto& entry : parameters) {
    const bool is_cut = form.cut == UnitCut::kMatrices;
    FlatShape& shape =
        shapes.emplace_back(is_cut ? sharded_shape_of(entry, num_parts) : flat_shape_of(*entry.parameter));
    // Matrices cut apart anyway lie the same whether they are rounded or not.
    shape.may_be_rounded = (is_cut || form.matrix_type) && optim::is_resblock_matrix(entry);
  }
  return shapes;
}

GradientPiece piece_of(const NamedParameter& entry, const FlatShape& shape, const distributed::FlatSlice& slice,
                       int64_t block) {
  return {.entry = entry,
          .shape = shape.sizes,
          .is_flat = true,
          .ranges = slice.ranges,
          .order = shape.order,
          .block = block};
}

std::vector<int> every(int first, int step, int count) {
  std::vector<int> ranks;
  for (int i = 0; i < count; ++i) ranks.push_back(first + i * step);
  return ranks;
}

}  // namespace

std::vector<int64_t> block_indices(const std::vector<NamedParameter>& parameters) {
  std::vector<int64_t> indices = optim::resblock_indices(parameters);
  std::vector<std::string> blocks;  // of a dVAE, in forward order
  for (size_t i = 0; i < parameters.size(); ++i) {
    if (parameters[i].name.find("blocks.group_") == std::string::npos) continue;
    const std::string block = optim::block_of(parameters[i].name);
    auto found = std::find(blocks.begin(), blocks.end(), block);
    if (found == blocks.end()) found = blocks.insert(blocks.end(), block);
    indices[i] = found - blocks.begin();
  }
  return indices;
}

std::vector<GradientPiece> pieces_of_part(const std::vector<NamedParameter>& parameters, int64_t group_size,
                                          int64_t part) {
  std::vector<GradientPiece> pieces;
  for (const auto& [index, members] : split(parameters).units) {
    const auto shapes = flat_shapes_of(members, {.cut = UnitCut::kMatrices}, group_size);
    for (const auto& slice : distributed::FlatLayout(shapes, group_size).slices(part)) {
      pieces.push_back(piece_of(members[slice.tensor], shapes[slice.tensor], slice, index));
    }
  }
  return pieces;
}

ShardedModel::ShardedModel(layers::Module& module, at::Device device, uint64_t seed, Sharding sharding,
                           int64_t group_size, Communicator& ranks, UnitForm form)
    : sharding_(sharding), form_(form), ranks_(ranks), inner_(&layers::plain_runner()) {
  const int world_size = ranks.world_size(), size = static_cast<int>(group_size);
  TORCH_CHECK_VALUE(size >= 1 && world_size % size == 0, "[sharded model] groups of ", size, " ranks do not share out ",
                    world_size);
  const int first = ranks.rank() / size * size, place = ranks.rank() % size;
  group_ = ranks.subgroup(every(first, 1, size));
  replicas_ = ranks.subgroup(every(place, size, world_size / size));
  all_ = module.named_parameters();
  const bool is_own_type = form_.matrix_type == all_.front().parameter->tensor.scalar_type();
  if (size == 1 || stays_whole() || is_own_type) form_.matrix_type.reset();
  Split parts = split(all_);
  whole_ = std::move(parts.whole);
  for (auto& [index, parameters] : parts.units) {
    if (index >= 0) blocks_[index] = &add_unit(index, std::move(parameters), device, seed);
  }
  if (parts.units.contains(-1)) root_ = &add_unit(-1, std::move(parts.units[-1]), device, seed);
  std::vector<Tensor> trained;
  for (const auto& entry : whole_) {
    Tensor& tensor = entry.parameter->tensor;
    const bool is_trained = tensor.requires_grad();
    tensor = at::empty(tensor.sizes(), tensor.options().device(device).requires_grad(false));
    if (entry.parameter->channels_last) tensor = tensor.contiguous(at::MemoryFormat::ChannelsLast);
    tensor.set_requires_grad(is_trained);
    layers::initialize_parameter(entry, seed);
    parts_.push_back(entry);
    if (!is_trained) continue;
    pieces_.push_back(entry);
    trained.push_back(tensor);
  }
  if (!trained.empty()) whole_reducer_ = std::make_unique<distributed::GradientReducer>(std::move(trained), ranks);
}

ShardedModel::~ShardedModel() = default;

ShardedModel::Unit& ShardedModel::add_unit(int64_t index, std::vector<NamedParameter> parameters, at::Device device,
                                           uint64_t seed) {
  Unit& unit = *units_.emplace_back(std::make_unique<Unit>());
  unit.index = index;
  unit.parameters = std::move(parameters);
  const auto type = unit.parameters.front().parameter->tensor.scalar_type();
  unit.flat =
      std::make_unique<distributed::FlatUnit>(flat_shapes_of(unit.parameters, form_, group_size()),
                                              at::TensorOptions(type).device(device), *group_, form_.matrix_type);
  for (size_t i = 0; i < unit.parameters.size(); ++i) {
    unit.parameters[i].parameter->tensor = unit.flat->view(i).requires_grad_();
    layers::initialize_parameter(unit.parameters[i], seed);
  }
  unit.part.name = unit.parameters.front().name;
  unit.part.tensor = stays_whole() ? unit.flat->own_part() : unit.flat->own_part().clone();
  if (!stays_whole()) unit.flat->release();
  unit.has_gradient.resize(unit.parameters.size());
  for (const auto& slice : unit.flat->slices()) {
    const auto& [name, original] = unit.parameters[slice.tensor];
    auto& piece = unit.pieces.emplace_back(std::make_unique<layers::Parameter>());
    piece->name = original->name;
    piece->tensor = unit.part.tensor.narrow(0, slice.offset, slice.size()).requires_grad_();
    piece->decays = original->decays;
    pieces_.push_back({name, piece.get()});
  }
  parts_.push_back({unit.part.name, &unit.part});
  return unit;
}

// ------------------------------------------------------------------------------------------------------------- weights

void ShardedModel::start_gather(int64_t index) {
  const auto block = blocks_.find(index);
  if (block != blocks_.end()) block->second->flat->start_gather(block->second->part.tensor, Gather::kRounded);
}

void ShardedModel::release(Unit& unit) {
  if (!stays_whole()) unit.flat->release();
}

Tensor ShardedModel::run(int64_t index, const Tensor& input, const std::function<Tensor(const Tensor&)>& function) {
  const auto block = blocks_.find(index);
  if (block == blocks_.end()) return inner_->run(index, input, function);
  Unit& unit = *block->second;
  unit.flat->gather(unit.part.tensor, Gather::kRounded);
  start_gather(index + 1);
  const bool has_gradients = c10::GradMode::is_enabled();
  if (!has_gradients) {
    const Tensor output = inner_->run(index, input, function);
    release(unit);
    return output;
  }
  // A cast of a weight that autograd kept would outlive the block: the whole model in 16 bits.
  const layers::RemadeCasts remade(!stays_whole());
  const Tensor entered =
      input.requires_grad() ? WithCallback::apply(input, [this, &unit] { after_backward(unit); }) : input;
  const Tensor output = inner_->run(index, entered, function);
  if (index != blocks_.rbegin()->first) release(unit);  // the last is the first that backward asks for
  if (!output.requires_grad()) return output;
  return WithCallback::apply(output, [this, index, &unit] {
    unit.flat->gather(unit.part.tensor, Gather::kRounded);
    start_gather(index - 1);
  });
}

void ShardedModel::begin_step() {
  for (const auto& unit : units_) {
    unit->gradient.reset();
    release(*unit);
  }
  if (root_ != nullptr) root_->flat->gather(root_->part.tensor);
}

void ShardedModel::after_update() {
  if (!stays_whole()) return;
  for (const auto& unit : units_) unit->flat->gather_again(unit->part.tensor);
}

void ShardedModel::keep_parts() {
  for (const auto& unit : units_) {
    TORCH_INTERNAL_ASSERT(unit->flat->is_whole());
    if (!stays_whole()) unit->part.tensor.copy_(unit->flat->own_part());
  }
}

void ShardedModel::with_whole_weights(optim::Ema* ema, const std::function<void()>& body) {
  std::vector<Tensor> kept;  // parts that are memory of the whole
  {
    std::optional<optim::EmaScope> averages;
    {
      const c10::NoGradGuard no_grad;
      const bool keeps = stays_whole() && ema != nullptr;
      for (const auto& unit : units_) {
        if (keeps) kept.push_back(unit->part.tensor.clone());
      }
      if (ema != nullptr) averages.emplace(*ema);
      for (const auto& unit : units_) {
        if (!stays_whole()) unit->flat->gather(unit->part.tensor);
        if (keeps) unit->flat->gather_again(unit->part.tensor);
      }
    }
    body();
  }
  const c10::NoGradGuard no_grad;
  for (size_t i = 0; i < units_.size(); ++i) {
    Unit& unit = *units_[i];
    release(unit);
    if (kept.empty()) continue;
    unit.part.tensor.copy_(kept[i]);
    unit.flat->gather_again(unit.part.tensor);
  }
}

void ShardedModel::with_weights_by_blocks(optim::Ema* ema, const std::function<void()>& body) {
  TORCH_INTERNAL_ASSERT(!stays_whole());
  const c10::NoGradGuard no_grad;
  {
    const auto restore =
        c10::make_scope_exit([this, inner = std::exchange(inner_, &layers::plain_runner())] { inner_ = inner; });
    std::optional<optim::EmaScope> averages;
    if (ema != nullptr) averages.emplace(*ema);
    if (root_ != nullptr) root_->flat->gather(root_->part.tensor);
    body();
  }
  for (const auto& unit : units_) release(*unit);
}

// ----------------------------------------------------------------------------------------------------------- gradients

void ShardedModel::begin_pass(bool is_last) {
  is_last_pass_ = is_last;
  is_in_backward_ = true;
  if (is_last) num_overlapped_ = 0;
  for (const auto& unit : units_) unit->is_reduced = false;
  if (is_last && whole_reducer_) whole_reducer_->arm();
}

// Whole gradients add up where they are whole anyway.
void ShardedModel::after_backward(Unit& unit) {
  if (stays_whole() && !is_last_pass_) return;
  start_reduce(unit);
  release(unit);
}

void ShardedModel::start_reduce(Unit& unit) {
  if (reducing_ != nullptr) settle(*std::exchange(reducing_, nullptr));
  std::vector<Tensor> gradients;
  for (size_t i = 0; i < unit.parameters.size(); ++i) {
    Tensor& gradient = unit.parameters[i].parameter->tensor.mutable_grad();
    unit.has_gradient[i] = unit.has_gradient[i] || gradient.defined();
    gradients.push_back(std::exchange(gradient, Tensor()));
  }
  unit.flat->start_reduce(std::move(gradients));
  unit.is_reduced = true;
  reducing_ = &unit;
}

void ShardedModel::settle(Unit& unit) {
  const c10::NoGradGuard no_grad;
  const Tensor sum = unit.flat->finish_reduce();
  if (unit.gradient.defined()) {
    unit.gradient += sum;
  } else {
    unit.gradient = sum;
  }
  if (is_last_pass_) complete(unit);
}

/// Gradients of a step that are summed over the group.
void ShardedModel::complete(Unit& unit) {
  if (is_in_backward_) ++num_overlapped_;
  if (sums_replicas_) {
    unit.sum_of_replicas = replicas_->start_all_reduce_sum(unit.gradient);
    return;
  }
  if (knows_gradients_) give_gradients(unit);
  if (is_in_backward_ && when_complete_) when_complete_(unit.index);
}

void ShardedModel::give_gradients(Unit& unit) {
  for (size_t i = 0; i < unit.pieces.size(); ++i) {
    const auto& slice = unit.flat->slices()[i];
    if (!unit.has_gradient[slice.tensor]) continue;
    unit.pieces[i]->tensor.mutable_grad() = unit.gradient.narrow(0, slice.offset, slice.size());
  }
}

void ShardedModel::end_pass() {
  is_in_backward_ = false;
  if (stays_whole() && !is_last_pass_) return;
  for (const auto& unit : units_) {
    if (!unit->is_reduced) start_reduce(*unit);
    if (unit.get() != root_) release(*unit);
  }
  if (reducing_ != nullptr) settle(*std::exchange(reducing_, nullptr));
  if (!is_last_pass_) return;
  if (root_ != nullptr) release(*root_);
  for (const auto& unit : units_) unit->sum_of_replicas.wait();
  if (whole_reducer_) whole_reducer_->finish();
  if (!knows_gradients_) agree_on_gradients();
  for (const auto& unit : units_) give_gradients(*unit);
}

/// Which parameters ever get a gradient: of the first step, on any rank. The others are never updated.
void ShardedModel::agree_on_gradients() {
  std::vector<int64_t> flags;
  for (const auto& unit : units_) flags.insert(flags.end(), unit->has_gradient.begin(), unit->has_gradient.end());
  Tensor counts = at::tensor(flags, at::kLong);
  ranks_.all_reduce_sum(counts);
  const int64_t* next = counts.const_data_ptr<int64_t>();
  for (const auto& unit : units_) {
    for (size_t i = 0; i < unit->has_gradient.size(); ++i) unit->has_gradient[i] = *next++ > 0;
  }
  knows_gradients_ = true;
}

GradientShare ShardedModel::leave_replicas() {
  sums_replicas_ = false;
  GradientShare share{.replicas = replicas_.get(), .group = group_.get()};
  auto piece = pieces_.begin();
  for (const auto& unit : units_) {
    for (const auto& slice : unit->flat->slices()) {
      share.pieces.push_back(piece_of(*piece++, unit->flat->shape(slice.tensor), slice, unit->index));
    }
  }
  share.already_summed.assign(piece, pieces_.end());
  return share;
}

optim::GradientNorms ShardedModel::gradient_norms() {
  const c10::NoGradGuard no_grad;
  std::map<std::string, int64_t> places;
  optim::GradientNorms norms;
  for (const auto& unit : units_) {
    for (size_t i = 0; i < unit->parameters.size(); ++i) {
      if (!unit->has_gradient[i]) continue;
      places[unit->parameters[i].name] = static_cast<int64_t>(norms.names.size());
      norms.names.push_back(unit->parameters[i].name);
    }
  }
  const optim::GradientNorms own = optim::gradient_norms(pieces_);
  std::vector<int64_t> own_places;
  std::vector<std::string> others;
  for (const auto& name : own.names) {
    if (places.contains(name)) {
      own_places.push_back(places[name]);
    } else {
      others.push_back(name);
    }
  }
  // Pieces come before what is whole.
  const auto num_own = static_cast<int64_t>(own_places.size());
  // A rank without any piece has norms on the CPU; collectives of different devices would never meet.
  const Tensor own_P = own.norms_P.to(parts_.front().parameter->tensor.device());
  Tensor squares = at::zeros({static_cast<int64_t>(norms.names.size())}, own_P.options());
  squares.index_add_(0, at::tensor(own_places, at::kLong).to(own_P.device()), own_P.slice(0, 0, num_own).square());
  group_->all_reduce_sum(squares);
  norms.norms_P = at::cat({squares.sqrt(), own_P.slice(0, num_own)});
  norms.names.insert(norms.names.end(), others.begin(), others.end());
  return norms;
}

ShardedBytes ShardedModel::bytes() const {
  ShardedBytes bytes;
  for (const auto& unit : units_) {
    const Tensor& kept = unit->part.tensor;
    bytes.weights += static_cast<int64_t>(kept.nbytes()) * (stays_whole() ? group_size() : 1);
    if (unit->gradient.defined()) bytes.gradients += static_cast<int64_t>(unit->gradient.nbytes());
  }
  for (const auto& [name, parameter] : whole_) {
    bytes.weights += static_cast<int64_t>(parameter->tensor.nbytes());
    const Tensor& gradient = parameter->tensor.grad();
    if (gradient.defined()) bytes.gradients += static_cast<int64_t>(gradient.nbytes());
  }
  return bytes;
}

std::string ShardedModel::describe() const {
  const double kept = static_cast<double>(bytes().weights);
  return str("sharding ", enum_name(sharding_), ": ", units_.size(), " units over groups of ", group_size(), " of ",
             ranks_.world_size(), " ranks; this one keeps ", scaled(kept, "B"), " of weights");
}

}  // namespace dalle::training

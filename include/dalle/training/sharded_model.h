// A model whose resblocks' parameters, gradients and optimizer state are split over a group of ranks (paper 2.5, E.1). The
// blocks are the units of a BlockRunner: the next one is gathered while one computes, never more than one ahead; a
// block's whole weights are given back after its use, and its gradients summed into the ranks' parts as its backward pass
// ends; in the last pass of a step the groups begin to sum their parts as soon as these are there. All other parameters are
// one more unit, there for the length of a step. Single numbers, and parameters that are not trained, stay whole on every
// rank.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "dalle/distributed/communicator.h"
#include "dalle/distributed/flat_unit.h"
#include "dalle/distributed/gradient_reducer.h"
#include "dalle/layers/block_runner.h"
#include "dalle/layers/module.h"
#include "dalle/optim/ema.h"
#include "dalle/optim/gradients.h"
#include "dalle/storage/tensor_pieces.h"
#include "dalle/training/gradient_compression.h"
#include "dalle/training/sharding.h"

namespace dalle::training {

/// What a rank holds between steps, counted from tensors; of gradients, since the last backward pass.
struct ShardedBytes {
  int64_t weights = 0, gradients = 0;
};

/// The unit of each parameter: the index its resblock has for a BlockRunner, or -1 outside of resblocks.
std::vector<int64_t> block_indices(const std::vector<layers::NamedParameter>& parameters);

/// The pieces of gradients that a rank has as the `part`-th of a group that shares one copy (sharding hybrid): those of
/// leave_replicas(), but that entries are the whole parameters. These may be on the meta device.
std::vector<GradientPiece> pieces_of_part(const std::vector<layers::NamedParameter>& parameters, int64_t group_size,
                                          int64_t part);

/// How a unit's numbers are shared out: in one stretch; or along each resblock matrix's axis as in the paper (E.1), so that
/// replicas can compress their shards.
enum class UnitCut { kStretch, kMatrices };

struct UnitForm {
  UnitCut cut = UnitCut::kStretch;
  /// What the model rounds matrices of resblocks to before each use, if it does: for the length of a block they are gathered
  /// in this type, half the bytes of f32, with the same results.
  std::optional<at::ScalarType> matrix_type;
};

class ShardedModel : public layers::BlockRunner {
 public:
  /// Allocates and initialises the module, still on the meta device, a unit at a time; each rank keeps its parts. With
  /// kOptimizer the weights stay whole. Groups are `group_size` ranks that follow each other; it divides the world's.
  /// Throws c10::ValueError where it does not. `module` and `ranks` outlive this.
  ShardedModel(layers::Module& module, at::Device device, uint64_t seed, Sharding sharding, int64_t group_size,
               distributed::Communicator& ranks, UnitForm form = {});
  ~ShardedModel() override;

  /// For the optimizer: this rank's slices of trained parameters as flat tensors under the parameters' names, then the
  /// trained ones that are whole. Their gradients are there from end_pass(true) to the next begin_step().
  const std::vector<layers::NamedParameter>& pieces() const { return pieces_; }
  /// For averaging: this rank's part of each unit, then all parameters that are whole.
  const std::vector<layers::NamedParameter>& parts() const { return parts_; }
  /// Whether every rank has all weights at all times.
  bool stays_whole() const { return sharding_ == Sharding::kOptimizer; }
  /// Parameters that are whole on every rank.
  const std::vector<layers::NamedParameter>& whole_parameters() const { return whole_; }

  /// The runner of blocks within the gathering: plain, or with activation checkpointing.
  void set_inner(layers::BlockRunner& inner) { inner_ = &inner; }
  Tensor run(int64_t index, const Tensor& input, const std::function<Tensor(const Tensor&)>& function) override;

  /// Before anything of a step.
  void begin_step();
  /// Before and after the backward pass of each micro-batch.
  void begin_pass(bool is_last);
  void end_pass();
  /// After the optimizer's step.
  void after_update();

  /// This rank's gradients, for something else to sum over the replicas: from now on end_pass() gives sums over the group.
  GradientShare leave_replicas();
  /// Calls complete(block) in the last backward pass of a step when the gradients of a block's pieces are such sums, -1 for
  /// all that is in no block. Those that the pass itself does not complete are there after end_pass(), without a call.
  void when_complete(std::function<void(int64_t block)> complete) { when_complete_ = std::move(complete); }
  /// Units of the last step whose gradients were on their way to the other replicas before the backward pass ended.
  int64_t num_overlapped() const { return num_overlapped_; }

  /// Norms of whole parameters' gradients, the same on every rank of the group.
  optim::GradientNorms gradient_norms();

  /// Runs `body` while every rank has the whole model, with the averages of `ema` where there is one (made of parts()): for
  /// previews, and to read weights from elsewhere; for validation of weights that stay whole. Then the model is as before.
  /// Ranks talk before and after it, and not where it throws: others may not come so far.
  void with_whole_weights(optim::Ema* ema, const std::function<void()>& body);
  /// Runs `body` while a model whose weights are split computes with the averages of `ema` where there is one (made of
  /// parts()), a block at a time: by this model as a runner, without gradients, in as many passes on every rank. Then the model
  /// is as before.
  void with_weights_by_blocks(optim::Ema* ema, const std::function<void()>& body);

  /// Takes this rank's parts from the module's whole weights; to be called within with_whole_weights().
  void keep_parts();

  int64_t group_size() const { return group_->world_size(); }
  int64_t part() const { return group_->rank(); }
  /// Whether this rank's group is the first: it writes checkpoints.
  bool is_first_group() const { return replicas_->rank() == 0; }
  /// The ranks that hold the same parts.
  distributed::Communicator& replicas() const { return *replicas_; }

  /// What this rank writes of the weights, or of averages of parts() in their order.
  std::vector<storage::TensorPiece> weights_as_pieces() const;
  std::vector<storage::TensorPiece> as_pieces(const std::vector<storage::NamedTensor>& parts) const;
  /// The same of the state of an optimizer of pieces().
  std::vector<storage::TensorPiece> optimizer_as_pieces(const std::vector<storage::NamedTensor>& state) const;
  /// This rank's share of a checkpoint, written under any layout: parts() with the values of its tensors, or the state of
  /// an optimizer of pieces(). Throw CheckpointError, naming `place`, where it is of another model.
  std::vector<storage::NamedTensor> parts_from(const storage::TensorFiles& files, const std::string& place) const;
  std::vector<storage::NamedTensor> optimizer_state_from(const storage::TensorFiles& files,
                                                         const std::string& place) const;
  /// This rank's share of whole weights with the module's names and shapes.
  std::vector<storage::NamedTensor> parts_of(const std::vector<storage::NamedTensor>& weights) const;
  /// Takes the weights of parts_from() or parts_of().
  void load(const std::vector<storage::NamedTensor>& parts);

  ShardedBytes bytes() const;
  /// "sharding full: 25 units over groups of 4 of 4 ranks; this one keeps 200 MB of weights"
  std::string describe() const;

 private:
  struct Unit;

  /// Numbers of a tensor, with its dimensions in `order` in memory (see FlatShape), one stretch after the other.
  using ReadRanges = std::function<Tensor(const std::string& name, const std::vector<NumberRange>& ranges,
                                          const std::vector<int64_t>& order)>;
  std::vector<storage::NamedTensor> parts_by(const ReadRanges& read) const;
  Unit& add_unit(int64_t index, std::vector<layers::NamedParameter> parameters, at::Device device, uint64_t seed);
  void start_gather(int64_t index);
  void release(Unit& unit);
  void after_backward(Unit& unit);
  void start_reduce(Unit& unit);
  void settle(Unit& unit);
  void complete(Unit& unit);
  void give_gradients(Unit& unit);
  void agree_on_gradients();
  void require_tensors_of(const storage::TensorFiles& files, const std::string& place) const;

  Sharding sharding_;
  UnitForm form_;
  distributed::Communicator& ranks_;
  std::unique_ptr<distributed::Communicator> group_, replicas_;
  std::vector<std::unique_ptr<Unit>> units_;
  std::map<int64_t, Unit*> blocks_;
  Unit* root_ = nullptr;      // all that is in no block
  Unit* reducing_ = nullptr;  // the one whose gradients are under way
  std::vector<layers::NamedParameter> all_, pieces_, parts_, whole_;
  std::unique_ptr<distributed::GradientReducer> whole_reducer_;
  layers::BlockRunner* inner_;
  std::function<void(int64_t)> when_complete_;
  bool is_last_pass_ = false, is_in_backward_ = false, knows_gradients_ = false, sums_replicas_ = true;
  int64_t num_overlapped_ = 0;
};

}  // namespace dalle::training

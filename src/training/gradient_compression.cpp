#include "dalle/training/gradient_compression.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <functional>
#include <map>

namespace dalle::training {
namespace {

distributed::PowerSgd make_powersgd(std::vector<distributed::CompressedMatrix> matrices,
                                    const std::vector<GradientPiece>& pieces, const CompressionConfig& config,
                                    uint64_t seed) {
  const auto options = pieces.empty() ? at::TensorOptions(at::kFloat) : pieces[0].entry.parameter->tensor.options();
  return {std::move(matrices), config, seed, options.requires_grad(std::nullopt)};
}

}  // namespace

GradientCompression::GradientCompression(GradientShare share, const CompressionConfig& config, uint64_t seed)
    : GradientCompression(share, cut(share.pieces, config), config, seed) {}

GradientCompression::GradientCompression(GradientShare share, Cut cut, const CompressionConfig& config, uint64_t seed)
    : share_(std::move(share)),
      pieces_(std::move(cut.pieces)),
      powersgd_(make_powersgd(std::move(cut.matrices), share_.pieces, config, seed)),
      rank_(config.rank),
      sizes_(compression_sizes(share_.pieces, config)) {
  if (share_.group != nullptr) {
    const std::vector<int64_t*> own{&sizes_.num_matrices, &sizes_.elements, &sizes_.factors, &sizes_.fixed,
                                    &sizes_.all};
    Tensor sums = at::empty({static_cast<int64_t>(own.size())}, at::kLong);
    for (size_t i = 0; i < own.size(); ++i) sums.mutable_data_ptr<int64_t>()[i] = *own[i];
    share_.group->all_reduce_sum(sums);
    for (size_t i = 0; i < own.size(); ++i) *own[i] = sums.const_data_ptr<int64_t>()[i];
    make_blocks();
    return;
  }
  make_blocks();
  std::vector<Tensor> parameters;
  for (const Piece& piece : pieces_) parameters.push_back(piece.entry.parameter->tensor);
  watch_ =
      std::make_unique<distributed::GradientWatch>(std::move(parameters), [this](size_t piece) { on_gradient(piece); });
}

void GradientCompression::make_blocks() {
  std::map<int64_t, Block, std::greater<>> blocks;  // as backward goes, until an order is agreed on
  for (size_t i = 0; i < pieces_.size(); ++i) {
    Block& block = blocks[pieces_[i].block];
    block.index = pieces_[i].block;
    block.pieces.push_back(i);
    block.is_compressed = block.is_compressed || !pieces_[i].regions.empty();
  }
  for (auto& [index, block] : blocks) blocks_.push_back(std::move(block));
  block_of_piece_.resize(pieces_.size());
}

int64_t GradientCompression::num_blocks() const {
  return std::count_if(blocks_.begin(), blocks_.end(), [](const Block& block) { return block.is_compressed; });
}

// ------------------------------------------------------------------------------------------------- beside the last pass

void GradientCompression::arm() {
  is_armed_ = true;
  num_started_ = 0;
  rounds_.clear();
  if (watch_) watch_->arm();
  for (Block& block : blocks_) {
    block.missing = 1;
    if (!watch_) continue;
    block.missing = std::count_if(block.pieces.begin(), block.pieces.end(),
                                  [this](size_t piece) { return watch_->has_gradient(piece); });
  }
}

void GradientCompression::complete(int64_t index) {
  const auto block =
      std::find_if(blocks_.begin(), blocks_.end(), [&](const Block& each) { return each.index == index; });
  if (!is_armed_ || block == blocks_.end()) return;
  if (!is_planned_) block->place = num_seen_++;
  block->missing = 0;
  start_complete();
}

void GradientCompression::on_gradient(size_t piece) {
  --blocks_[block_of_piece_[piece]].missing;
  start_complete();
}

/// In order, so that all ranks start the same sums one after the other.
void GradientCompression::start_complete() {
  if (!is_planned_) return;
  while (num_started_ < blocks_.size() && blocks_[num_started_].missing == 0) start(blocks_[num_started_++]);
}

/// Nothing here writes to gradients: backward may still need their memory.
void GradientCompression::start(Block& block) {
  const c10::NoGradGuard no_grad;
  if (scale_ && block.index >= 0) block.scale = scale_(block.index);
  std::vector<size_t> matrices;
  for (const size_t index : block.pieces) {
    const Piece& piece = pieces_[index];
    if (!piece.is_present) continue;
    const Tensor& gradient = piece.entry.parameter->tensor.grad();
    for (size_t i = 0; i < piece.regions.size(); ++i) {
      matrices.push_back(piece.first_matrix + i);
      if (gradient.defined()) powersgd_.add(matrices.back(), values_of(piece, piece.regions[i], gradient), block.scale);
    }
  }
  rounds_.push_back(powersgd_.start_p(std::move(matrices), *share_.replicas));
  // The block before had this one's backward pass for its P to arrive.
  if (rounds_.size() > 1) powersgd_.start_q(rounds_[rounds_.size() - 2]);
}

// ------------------------------------------------------------------------------------------------------------- the rest

/// The numbers of a region [rows, cols] of `whole`, the piece's gradient or something of its shape.
Tensor GradientCompression::values_of(const Piece& piece, const Region& region, const Tensor& whole) {
  if (piece.is_flat) {
    const Tensor numbers = whole.narrow(0, region.begin, region.area());
    return region.is_transposed ? numbers.view({region.num_cols, region.num_rows}).t()
                                : numbers.view({region.num_rows, region.num_cols});
  }
  return whole.flatten(1).narrow(0, region.row, region.num_rows).narrow(1, region.col, region.num_cols);
}

void GradientCompression::put(const Piece& piece, const Region& region, const Tensor& values, const Tensor& whole) {
  if (piece.is_flat || whole.dim() == 2) {
    values_of(piece, region, whole).copy_(values);
  } else {  // flattened it may be a copy; a kernel is cut along its outputs alone
    const Tensor rows = whole.narrow(0, region.row, region.num_rows);
    rows.copy_(values.reshape(rows.sizes()));
  }
}

/// Which parameters have gradients, and in which order, is the model's matter, the same in every step: so ranks agree once.
void GradientCompression::plan() {
  Tensor counts = at::empty({static_cast<int64_t>(pieces_.size())}, at::kLong);
  for (size_t i = 0; i < pieces_.size(); ++i) {
    const bool has_gradient = pieces_[i].entry.parameter->tensor.grad().defined();
    counts.mutable_data_ptr<int64_t>()[i] = has_gradient ? 1 : 0;
  }
  const at::Device device = pieces_.empty() ? at::Device(at::kCPU) : pieces_[0].entry.parameter->tensor.device();
  counts = counts.to(device);
  share_.replicas->all_reduce_sum(counts);
  counts = counts.cpu();
  for (size_t i = 0; i < pieces_.size(); ++i) pieces_[i].is_present = counts.const_data_ptr<int64_t>()[i] > 0;

  Tensor places = at::empty({static_cast<int64_t>(blocks_.size())}, at::kLong);
  for (size_t i = 0; i < blocks_.size(); ++i) {
    Block& block = blocks_[i];
    for (const size_t piece : block.pieces) {
      if (watch_) block.place = std::max(block.place, watch_->place(piece));
    }
    places.mutable_data_ptr<int64_t>()[i] = block.place;
  }
  places = places.to(device);
  share_.replicas->broadcast(places, 0);
  places = places.cpu();
  for (size_t i = 0; i < blocks_.size(); ++i) blocks_[i].place = places.const_data_ptr<int64_t>()[i];
  // Those that the pass did not come to last.
  std::stable_sort(blocks_.begin(), blocks_.end(), [](const Block& a, const Block& b) {
    return static_cast<uint64_t>(a.place) < static_cast<uint64_t>(b.place);
  });
  for (size_t i = 0; i < blocks_.size(); ++i) {
    for (const size_t piece : blocks_[i].pieces) block_of_piece_[piece] = i;
  }
  is_planned_ = true;
}

/// What is begun goes on, all else begins, and all of it has arrived.
void GradientCompression::finish_factors() {
  if (!is_armed_) {
    num_started_ = 0;
    rounds_.clear();
  }
  is_armed_ = false;
  if (watch_) watch_->disarm();
  num_overlapped_ = std::count_if(blocks_.begin(), blocks_.begin() + static_cast<int64_t>(num_started_),
                                  [](const Block& block) { return block.is_compressed; });
  if (!is_planned_) plan();
  while (num_started_ < blocks_.size()) start(blocks_[num_started_++]);
  if (!rounds_.empty()) powersgd_.start_q(rounds_.back());
  for (auto& round : rounds_) powersgd_.finish(round);
  rounds_.clear();
}

/// Those that are summed exactly, as views: without their scales, and with what was carried.
std::vector<Tensor> GradientCompression::exact_gradients() {
  std::vector<Tensor> views;
  for (size_t index = 0; index < pieces_.size(); ++index) {
    Piece& piece = pieces_[index];
    if (!piece.is_present) continue;
    Tensor& gradient = piece.entry.parameter->tensor.mutable_grad();
    if (!gradient.defined()) gradient = at::zeros_like(piece.entry.parameter->tensor.detach());
    const size_t first = views.size();
    if (!piece.is_flat && piece.regions.empty()) views.push_back(gradient);
    for (const auto& [begin, end] : piece.exact) views.push_back(gradient.narrow(0, begin, end - begin));
    const Tensor& scale = blocks_[block_of_piece_[index]].scale;
    for (size_t i = first; i < views.size() && scale.defined(); ++i) views[i].div_(scale);
    // What is carried of numbers that are compressed was given to the buffers.
    if (piece.carried.defined()) gradient += piece.carried.view_as(gradient);
  }
  return views;
}

/// Once an update has taken it. Looks at the device, but only while there is something that is carried.
void GradientCompression::forget_carried(const Tensor& norm_squared) {
  const bool carries = std::any_of(pieces_.begin(), pieces_.end(), [](const Piece& p) { return p.carried.defined(); });
  if (!carries || !norm_squared.isfinite().item<bool>()) return;
  for (Piece& piece : pieces_) piece.carried = Tensor();
}

Tensor GradientCompression::reduce() {
  const c10::NoGradGuard no_grad;
  finish_factors();
  std::vector<Tensor> exact = exact_gradients();
  Tensor norm_squared = powersgd_.reduce_rest(exact, *share_.replicas);
  if (share_.group != nullptr) share_.group->all_reduce_sum(norm_squared);
  for (const auto& [name, parameter] : share_.already_summed) {
    const Tensor& gradient = parameter->tensor.grad();
    if (gradient.defined()) norm_squared += at::linalg_vector_norm(gradient).to(at::kDouble).square();
  }
  for (const Piece& piece : pieces_) {
    if (!piece.is_present) continue;
    for (size_t i = 0; i < piece.regions.size(); ++i) {
      put(piece, piece.regions[i], powersgd_.decompress(piece.first_matrix + i), piece.entry.parameter->tensor.grad());
    }
  }
  forget_carried(norm_squared);
  return norm_squared.sqrt().to(at::kFloat);
}

}  // namespace dalle::training

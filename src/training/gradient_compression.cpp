#include "dalle/training/gradient_compression.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <numeric>

#include "dalle/core/error.h"
#include "dalle/core/number_text.h"
#include "dalle/core/str.h"
#include "dalle/optim/parameter_groups.h"

namespace dalle::training {
namespace {

constexpr std::string_view kPrefix = "powersgd.";

distributed::PowerSgd make_powersgd(std::vector<distributed::CompressedMatrix> matrices,
                                    const std::vector<GradientPiece>& pieces, const CompressionConfig& config,
                                    uint64_t seed) {
  const auto options = pieces.empty() ? at::TensorOptions(at::kFloat) : pieces[0].entry.parameter->tensor.options();
  return {std::move(matrices), config, seed, options.requires_grad(std::nullopt)};
}

int64_t product(const std::vector<int64_t>& shape) {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

std::string percent(double share) {
  const auto tenths = static_cast<int64_t>(1000 * share + 0.5);
  return str(tenths / 10, ".", tenths % 10, " %");
}

}  // namespace

void CompressionConfig::validate(const std::string& place) const {
  if (rank % num_shards == 0) return;
  throw ConfigError(Problem{place, str("a rank that num_shards ", num_shards, " divides"), str("rank ", rank),
                            "each shard of a matrix has rank / num_shards columns of the factors"});
}

GradientShare whole_gradients(const std::vector<layers::NamedParameter>& parameters, distributed::Communicator& ranks) {
  GradientShare share{.replicas = &ranks};
  for (const auto& entry : parameters) {
    const Tensor& tensor = entry.parameter->tensor;
    if (tensor.requires_grad()) share.pieces.push_back({.entry = entry, .shape = tensor.sizes().vec()});
  }
  return share;
}

// ------------------------------------------------------------------------------------------------------------- cutting

int64_t GradientCompression::Piece::num_cols() const { return product(shape) / shape[0]; }

/// None where the factors are no smaller. Of a flat piece only whole rows.
std::vector<std::pair<distributed::CompressedMatrix, GradientCompression::Region>> GradientCompression::regions_of(
    const GradientPiece& piece, const CompressionConfig& config) {
  const auto& name = piece.entry.name;
  if (!optim::is_resblock_matrix(piece.entry)) return {};
  const bool is_qkv = name.ends_with("in_proj_weight");
  // Shards lie along the outputs, those of the second MLP matrix along its inputs (paper E.1).
  const bool by_cols = name.ends_with("mlp.c_proj.weight");
  const int64_t parts = is_qkv ? 3 : 1, rows = piece.shape[0] / parts, cols = product(piece.shape) / piece.shape[0];
  const int64_t end = piece.begin + piece.entry.parameter->tensor.numel();
  const int64_t first = piece.is_flat ? (piece.begin + cols - 1) / cols : 0;
  const int64_t last = piece.is_flat ? end / cols : piece.shape[0];
  const int64_t num_shards = piece.is_flat ? 1 : config.num_shards;
  std::vector<std::pair<distributed::CompressedMatrix, Region>> regions;
  for (int64_t part = 0; part < parts; ++part) {
    const std::string matrix_name = is_qkv ? str(name, ".", "qkv"[part]) : name;
    for (int64_t shard = 0; shard < num_shards; ++shard) {
      const auto from = [&](int64_t size, int64_t at) { return size * at / num_shards; };
      Region region{.row = part * rows, .num_rows = rows, .col = 0, .num_cols = cols};
      if (by_cols) {
        region.col = from(cols, shard);
        region.num_cols = from(cols, shard + 1) - region.col;
      } else {
        region.row += from(rows, shard);
        region.num_rows = from(rows, shard + 1) - from(rows, shard);
      }
      const int64_t top = std::max(region.row, first), bottom = std::min(region.row + region.num_rows, last);
      if (top >= bottom || region.num_cols == 0) continue;
      const bool is_whole = bottom - top == rows && region.num_cols == cols;
      region.row = top;
      region.num_rows = bottom - top;
      const int64_t area = region.num_rows * region.num_cols;
      const int64_t rank = std::max<int64_t>(1, (config.rank * area + rows * cols / 2) / (rows * cols));
      const std::string place = str(".", region.row, ".", region.col, ".", region.num_rows, ".", region.num_cols);
      const distributed::CompressedMatrix matrix{is_whole ? matrix_name : matrix_name + place, region.num_rows,
                                                 region.num_cols, rank};
      if (matrix.factor_elements(rank) < area) regions.emplace_back(matrix, region);
    }
  }
  // A whole gradient is compressed as a whole or not at all.
  const bool some_do_not_pay = static_cast<int64_t>(regions.size()) < parts * num_shards;
  if (!piece.is_flat && some_do_not_pay) return {};
  return regions;
}

GradientCompression::Cut GradientCompression::cut(const std::vector<GradientPiece>& pieces,
                                                  const CompressionConfig& config) {
  Cut all;
  for (const auto& given : pieces) {
    Piece piece;
    static_cast<GradientPiece&>(piece) = given;
    piece.first_matrix = all.matrices.size();
    int64_t next = 0;  // of the piece's numbers, the first that is in no region yet
    for (auto& [matrix, region] : regions_of(given, config)) {
      all.matrices.push_back(std::move(matrix));
      piece.regions.push_back(region);
      if (!piece.is_flat) continue;
      const int64_t begin = region.row * region.num_cols - piece.begin;
      if (begin > next) piece.exact.emplace_back(next, begin);
      next = begin + region.num_rows * region.num_cols;
    }
    if (piece.is_flat && next < piece.numel()) piece.exact.emplace_back(next, piece.numel());
    all.pieces.push_back(std::move(piece));
  }
  return all;
}

std::vector<distributed::CompressedMatrix> compressed_matrices(const std::vector<GradientPiece>& pieces,
                                                               const CompressionConfig& config) {
  return GradientCompression::cut(pieces, config).matrices;
}

GradientCompression::GradientCompression(GradientShare share, const CompressionConfig& config, uint64_t seed)
    : GradientCompression(share, cut(share.pieces, config), config, seed) {}

GradientCompression::GradientCompression(GradientShare share, Cut cut, const CompressionConfig& config, uint64_t seed)
    : share_(std::move(share)),
      pieces_(std::move(cut.pieces)),
      powersgd_(make_powersgd(std::move(cut.matrices), share_.pieces, config, seed)),
      rank_(config.rank) {}

// ------------------------------------------------------------------------------------------------------------ gradients

/// The numbers of a region [rows, cols] of `whole`, the piece's gradient or something of its shape.
Tensor GradientCompression::values_of(const Piece& piece, const Region& region, const Tensor& whole) {
  if (piece.is_flat) {
    const int64_t begin = region.row * region.num_cols - piece.begin;
    return whole.narrow(0, begin, region.num_rows * region.num_cols).view({region.num_rows, region.num_cols});
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

/// Which parameters have gradients is the model's matter, the same in every step: so ranks agree on it once.
void GradientCompression::plan() {
  Tensor counts = at::empty({static_cast<int64_t>(pieces_.size())}, at::kLong);
  for (size_t i = 0; i < pieces_.size(); ++i) {
    const bool has_gradient = pieces_[i].entry.parameter->tensor.grad().defined();
    counts.mutable_data_ptr<int64_t>()[i] = has_gradient ? 1 : 0;
  }
  counts = counts.to(pieces_.empty() ? at::Device(at::kCPU) : pieces_[0].entry.parameter->tensor.device());
  share_.replicas->all_reduce_sum(counts);
  counts = counts.cpu();
  for (size_t i = 0; i < pieces_.size(); ++i) pieces_[i].is_present = counts.const_data_ptr<int64_t>()[i] > 0;
  is_planned_ = true;
}

/// Of the gradients that are summed exactly.
std::vector<Tensor> GradientCompression::exact_views() const {
  std::vector<Tensor> views;
  for (const Piece& piece : pieces_) {
    if (!piece.is_present) continue;
    const Tensor& gradient = piece.entry.parameter->tensor.grad();
    if (!piece.is_flat && piece.regions.empty()) views.push_back(gradient);
    for (const auto& [begin, end] : piece.exact) views.push_back(gradient.narrow(0, begin, end - begin));
  }
  return views;
}

Tensor GradientCompression::reduce() {
  const c10::NoGradGuard no_grad;
  if (!is_planned_) plan();
  std::vector<size_t> matrices;  // that have gradients
  for (Piece& piece : pieces_) {
    if (!piece.is_present) continue;
    Tensor& gradient = piece.entry.parameter->tensor.mutable_grad();
    if (!gradient.defined()) gradient = at::zeros_like(piece.entry.parameter->tensor.detach());
    for (size_t i = 0; i < piece.regions.size(); ++i) {
      powersgd_.add(piece.first_matrix + i, values_of(piece, piece.regions[i], gradient));
      matrices.push_back(piece.first_matrix + i);
    }
    // What is carried of numbers that are compressed was given to the buffers.
    if (piece.carried.defined()) gradient += std::exchange(piece.carried, Tensor()).view_as(gradient);
  }
  std::vector<Tensor> exact = exact_views();
  powersgd_.reduce_factors(matrices, *share_.replicas);
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
  return norm_squared.sqrt().to(at::kFloat);
}

// ---------------------------------------------------------------------------------------------------------------- rates

double GradientCompression::matrix_rate() const { return distributed::compression_rate(powersgd_.matrices(), rank_); }

double GradientCompression::compression_rate() const {
  int64_t elements = 0, saved = 0;
  for (const Piece& piece : pieces_) {
    if (piece.is_present) elements += piece.numel();
  }
  for (const auto& matrix : powersgd_.matrices()) saved += matrix.elements() - matrix.factor_elements(rank_);
  return elements == 0 ? 0 : static_cast<double>(saved) / static_cast<double>(elements);
}

std::string GradientCompression::describe() const {
  int64_t elements = 0, factors = 0;
  for (const auto& matrix : powersgd_.matrices()) {
    elements += matrix.elements();
    factors += matrix.factor_elements(rank_);
  }
  return str("PowerSGD of rank ", rank_, ": ", powersgd_.matrices().size(), " matrices of ", grouped_digits(elements),
             " numbers are sent as ", grouped_digits(factors), ", compression rate ", percent(matrix_rate()),
             "; of all gradients ", percent(compression_rate()), " are not sent");
}

// ---------------------------------------------------------------------------------------------------------------- state

bool GradientCompression::is_state(const std::string& name) { return name.starts_with(kPrefix); }

std::vector<storage::TensorPiece> GradientCompression::state() const {
  const c10::NoGradGuard no_grad;
  const auto sums = powersgd_.error_sums(*share_.replicas);
  std::vector<storage::TensorPiece> state;
  for (const Piece& piece : pieces_) {
    // Of a piece all ranks of a group write their part, compressed or not, so that the parts are the whole.
    const bool is_written = piece.is_flat ? optim::is_resblock_matrix(piece.entry) : !piece.regions.empty();
    if (!is_written) continue;
    const auto options = piece.entry.parameter->tensor.options().requires_grad(false);
    const Tensor values =
        at::zeros(piece.is_flat ? at::IntArrayRef(piece.numel()) : at::IntArrayRef(piece.shape), options);
    for (size_t i = 0; i < piece.regions.size(); ++i) {
      put(piece, piece.regions[i], sums[piece.first_matrix + i], values);
    }
    state.push_back({.name = std::string(kPrefix) + piece.entry.name,
                     .shape = piece.shape,
                     .begin = piece.begin,
                     .channels_last = piece.channels_last,
                     .values = values.flatten()});
  }
  return state;
}

/// `read`: the numbers of a piece, flat, or nothing.
void GradientCompression::load_from(const std::function<Tensor(const Piece&)>& read) {
  const c10::NoGradGuard no_grad;
  std::vector<Tensor> sums;
  for (Piece& piece : pieces_) {
    const Tensor given = optim::is_resblock_matrix(piece.entry) ? read(piece) : Tensor();
    const Tensor& parameter = piece.entry.parameter->tensor;
    Tensor values = at::zeros_like(parameter.detach(), at::MemoryFormat::Contiguous);
    if (given.defined()) values.copy_(given.view_as(values));
    for (const Region& region : piece.regions) {
      sums.push_back(values_of(piece, region, values).clone());
      put(piece, region, at::zeros_like(sums.back()), values);
    }
    piece.carried = Tensor();
    if (given.defined() && values.ne(0).any().item<bool>()) piece.carried = values / share_.replicas->world_size();
  }
  powersgd_.load_error_sums(sums, share_.replicas->world_size());
}

void GradientCompression::load_state(std::vector<storage::NamedTensor>& state) {
  const auto fail = [](const std::string& expected, const std::string& got) {
    throw CheckpointError(
        Problem{.place = "error buffers", .expected = expected, .got = got, .hint = "it belongs to another model"});
  };
  std::vector<std::string> used;
  load_from([&](const Piece& piece) {
    const std::string name = std::string(kPrefix) + piece.entry.name;
    const Tensor* sum = storage::find_tensor(state, name);
    if (sum == nullptr) return Tensor();
    if (sum->sizes() != at::IntArrayRef(piece.shape)) {
      fail(dalle::str("'", name, "' of shape ", at::IntArrayRef(piece.shape)), dalle::str(sum->sizes()));
    }
    used.push_back(name);
    TORCH_INTERNAL_ASSERT(!piece.is_flat, "pieces read their numbers from files");
    return sum->flatten();
  });
  std::erase_if(state,
                [&](const auto& entry) { return std::find(used.begin(), used.end(), entry.name) != used.end(); });
  for (const auto& entry : state) {
    if (is_state(entry.name)) fail("those of the model's matrices", str("'", entry.name, "'"));
  }
}

void GradientCompression::load_state(const storage::TensorFiles& files) {
  load_from([&](const Piece& piece) {
    const std::string name = std::string(kPrefix) + piece.entry.name;
    const auto* shape = files.shape(name);
    if (shape == nullptr) return Tensor();
    if (*shape != piece.shape) {
      throw CheckpointError(Problem{.place = "error buffers",
                                    .expected = dalle::str("'", name, "' of shape ", at::IntArrayRef(piece.shape)),
                                    .got = dalle::str(at::IntArrayRef(*shape)),
                                    .hint = "it belongs to another model"});
    }
    return files.read_range(name, piece.begin, piece.begin + piece.numel(), piece.channels_last);
  });
}

}  // namespace dalle::training

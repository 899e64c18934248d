// What of a model's gradients is compressed, and what that saves: the matrices that each piece of a gradient is cut into.
#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>

#include "dalle/core/error.h"
#include "dalle/core/number_text.h"
#include "dalle/core/str.h"
#include "dalle/optim/parameter_groups.h"
#include "dalle/training/gradient_compression.h"
#include "dalle/training/sharded_model.h"

namespace dalle::training {
namespace {

int64_t product_of(const std::vector<int64_t>& shape) {
  return std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>());
}

std::string percent_in_tenths(double share) {
  const auto tenths = static_cast<int64_t>(1000 * share + 0.5);
  return str(tenths / 10, ".", tenths % 10, " %");
}

}  // namespace

void CompressionConfig::validate(const std::string& place) const {
  if (rank % num_shards == 0) return;
  throw ConfigError(Problem{place, str("a rank that num_shards ", num_shards, " divides"), str("rank ", rank),
                            "each shard of a matrix has rank / num_shards columns of the factors"});
}

int64_t GradientPiece::numel() const { return is_flat ? total_size(ranges) : product_of(shape); }

std::vector<GradientPiece> whole_pieces(const std::vector<layers::NamedParameter>& parameters) {
  const auto blocks = block_indices(parameters);
  std::vector<GradientPiece> pieces;
  for (size_t i = 0; i < parameters.size(); ++i) {
    const Tensor& tensor = parameters[i].parameter->tensor;
    if (!tensor.requires_grad()) continue;
    pieces.push_back({.entry = parameters[i], .shape = tensor.sizes().vec(), .block = blocks[i]});
  }
  return pieces;
}

GradientShare whole_gradients(const std::vector<layers::NamedParameter>& parameters, distributed::Communicator& ranks) {
  return {.pieces = whole_pieces(parameters), .replicas = &ranks};
}

std::vector<GradientCompression::Region> GradientCompression::regions_of_whole(const GradientPiece& piece,
                                                                               int64_t num_shards) {
  const auto axis = optim::shard_axis(piece.entry);
  const int64_t rows = piece.shape[0] / axis.num_stacked, cols = product_of(piece.shape) / piece.shape[0];
  std::vector<Region> regions;
  for (int64_t matrix = 0; matrix < axis.num_stacked; ++matrix) {
    for (int64_t shard = 0; shard < num_shards; ++shard) {
      const auto from = [&](int64_t size, int64_t at) { return size * at / num_shards; };
      Region region{.row = matrix * rows, .num_rows = rows, .col = 0, .num_cols = cols};
      if (axis.by_inputs) {
        region.col = from(cols, shard);
        region.num_cols = from(cols, shard + 1) - region.col;
      } else {
        region.row += from(rows, shard);
        region.num_rows = from(rows, shard + 1) - from(rows, shard);
      }
      regions.push_back(region);
    }
  }
  return regions;
}

/// The whole rows in each of its ranges, or the whole columns where it lies transposed.
std::vector<GradientCompression::Region> GradientCompression::regions_of_flat(const GradientPiece& piece) {
  const int64_t all_rows = piece.shape[0], cols = product_of(piece.shape) / all_rows;
  const int64_t rows = all_rows / optim::shard_axis(piece.entry).num_stacked;
  const bool is_transposed = piece.order == storage::DimensionOrder{1, 0};
  const int64_t line = is_transposed ? all_rows : cols;
  std::vector<Region> regions;
  int64_t place = 0;  // of the range in the piece
  for (const auto& range : piece.ranges) {
    const int64_t first = (range.begin + line - 1) / line, last = range.end / line;
    if (is_transposed && first < last) {
      regions.push_back({.num_rows = all_rows,
                         .col = first,
                         .num_cols = last - first,
                         .begin = place + first * line - range.begin,
                         .is_transposed = true});
    }
    for (int64_t top = is_transposed ? last : first; top < last;) {
      const int64_t bottom = std::min(last, (top / rows + 1) * rows);  // of one of the stacked matrices
      regions.push_back(
          {.row = top, .num_rows = bottom - top, .num_cols = cols, .begin = place + top * line - range.begin});
      top = bottom;
    }
    place += range.size();
  }
  return regions;
}

/// None where the factors are no smaller.
std::vector<std::pair<distributed::CompressedMatrix, GradientCompression::Region>> GradientCompression::regions_of(
    const GradientPiece& piece, const CompressionConfig& config) {
  if (!optim::is_resblock_matrix(piece.entry)) return {};
  const int64_t num_stacked = optim::shard_axis(piece.entry).num_stacked;
  const int64_t rows = piece.shape[0] / num_stacked, cols = product_of(piece.shape) / piece.shape[0];
  const auto candidates = piece.is_flat ? regions_of_flat(piece) : regions_of_whole(piece, config.num_shards);
  std::vector<std::pair<distributed::CompressedMatrix, Region>> regions;
  for (const Region& region : candidates) {
    const int64_t area = region.area();
    if (area == 0) continue;
    const auto matrix = static_cast<size_t>(region.row / rows);
    std::string name = num_stacked == 3 ? str(piece.entry.name, ".", "qkv"[matrix]) : piece.entry.name;
    if (area != rows * cols) name += str(".", region.row, ".", region.col, ".", region.num_rows, ".", region.num_cols);
    const int64_t rank = std::max<int64_t>(1, (config.rank * area + rows * cols / 2) / (rows * cols));
    const distributed::CompressedMatrix cut{name, region.num_rows, region.num_cols, rank};
    if (cut.factor_elements(rank) < area) regions.emplace_back(cut, region);
  }
  // A whole gradient is compressed as a whole or not at all.
  const bool some_do_not_pay = std::ssize(regions) < num_stacked * config.num_shards;
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
      if (region.begin > next) piece.exact.push_back({next, region.begin});
      next = region.begin + region.area();
    }
    if (piece.is_flat && next < piece.numel()) piece.exact.push_back({next, piece.numel()});
    all.pieces.push_back(std::move(piece));
  }
  return all;
}

std::vector<distributed::CompressedMatrix> compressed_matrices(const std::vector<GradientPiece>& pieces,
                                                               const CompressionConfig& config) {
  return GradientCompression::cut(pieces, config).matrices;
}

CompressionSizes compression_sizes(const std::vector<GradientPiece>& pieces, const CompressionConfig& config) {
  CompressionSizes sizes;
  for (const auto& piece : pieces) sizes.all += piece.numel();
  for (const auto& matrix : compressed_matrices(pieces, config)) {
    ++sizes.num_matrices;
    sizes.elements += matrix.elements();
    sizes.factors += matrix.factor_elements(config.rank);
    sizes.fixed += matrix.columns(config.rank) * std::max(matrix.rows, matrix.cols);
  }
  return sizes;
}

CompressionSizes& CompressionSizes::operator+=(const CompressionSizes& other) {
  num_matrices += other.num_matrices;
  elements += other.elements;
  factors += other.factors;
  fixed += other.fixed;
  all += other.all;
  return *this;
}

double CompressionSizes::matrix_rate() const {
  return elements == 0 ? 0 : 1 - static_cast<double>(factors) / static_cast<double>(elements);
}

double CompressionSizes::rate() const {
  return all == 0 ? 0 : static_cast<double>(elements - factors) / static_cast<double>(all);
}

std::string CompressionSizes::describe(int64_t rank) const {
  return str("PowerSGD of rank ", rank, ": ", num_matrices, " matrices of ", grouped_digits(elements),
             " numbers are sent as ", grouped_digits(factors), ", compression rate ", percent_in_tenths(matrix_rate()),
             "; of all gradients ", percent_in_tenths(rate()), " are not sent");
}

}  // namespace dalle::training

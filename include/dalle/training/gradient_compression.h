// PowerSGD (distributed/powersgd.h) between a model's gradients and its optimizer. Matrices and kernels of residual blocks are
// compressed where that sends fewer numbers; all else is summed exactly. The matrices of queries, keys and values are
// compressed apart (paper, table 2), a kernel as [out, in * height * width].
//
// The paper compresses each shard of a matrix for itself (E.1, E.2). Where ranks share a copy of the model (sharding
// hybrid) a rank's part of a matrix is such a shard; of a matrix that the ranks do not divide it is the whole rows within the
// rank's part of the block, and the ends of rows that lie on the border of a part are summed exactly. Elsewhere
// `num_shards` cuts matrices in the same way. A shard's rank is its part of the matrix's.
//
// A resblock's factors are made and sent as soon as the last backward pass of a step has completed its gradients, beside the
// rest of the pass: P of a block is under way while the next block is in backward, then Q (paper E.2: steps 3 to 8 of later
// blocks run while earlier ones are in backward). The order of blocks is that of rank 0's first such pass, on all ranks.
//
// An update depends on the sums over ranks alone, of gradients and of error buffers: so a run is the same for any number of
// ranks, one included, up to rounding.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "dalle/core/number_range.h"
#include "dalle/distributed/gradient_watch.h"
#include "dalle/distributed/powersgd.h"
#include "dalle/layers/module.h"
#include "dalle/storage/named_tensor.h"
#include "dalle/storage/tensor_pieces.h"

namespace dalle::training {

struct CompressionConfig : distributed::PowerSgdConfig {
  bool enabled = false;
  int64_t num_shards = 1;

  static void visit_fields(auto& self, auto&& field) {
    field("enabled", self.enabled, "replicas send each other low-rank factors of gradients in place of gradients");
    distributed::PowerSgdConfig::visit_fields(self, field);
    field("num_shards", self.num_shards,
          "parts that each matrix is compressed in, with rank / num_shards each (paper: 8); with sharding hybrid the "
          "parts of its ranks are taken",
          {.min = 1});
  }
  /// Throws ConfigError where the rank cannot be shared out.
  void validate(const std::string& place) const;
};

/// A trained parameter's gradient as a rank has it: whole, in the parameter's shape, or some of its numbers, flat.
struct GradientPiece {
  layers::NamedParameter entry;
  std::vector<int64_t> shape;  // of the whole parameter
  bool is_flat = false;
  std::vector<NumberRange> ranges;  // of a flat one: its numbers' places in the parameter's memory
  storage::DimensionOrder order;    // of a flat one: that of this memory
  int64_t block = -1;               // the index its resblock has for a BlockRunner; -1 outside of resblocks

  int64_t numel() const;
};

/// What a rank has to sum with others.
struct GradientShare {
  std::vector<GradientPiece> pieces;
  distributed::Communicator* replicas = nullptr;       // ranks with the same pieces
  distributed::Communicator* group = nullptr;          // ranks that share one copy; none where pieces are all
  std::vector<layers::NamedParameter> already_summed;  // over all ranks; they count in the norm alone
};

/// All gradients, whole. Parameters may be on the meta device.
std::vector<GradientPiece> whole_pieces(const std::vector<layers::NamedParameter>& parameters);
/// Of ranks that have all gradients.
GradientShare whole_gradients(const std::vector<layers::NamedParameter>& parameters, distributed::Communicator& ranks);

/// The matrices that are compressed.
std::vector<distributed::CompressedMatrix> compressed_matrices(const std::vector<GradientPiece>& pieces,
                                                               const CompressionConfig& config);

/// What is compressed and what of it is sent, in numbers.
struct CompressionSizes {
  int64_t num_matrices = 0;
  int64_t elements = 0, factors = 0;  // of the matrices, and of what is sent in their place
  int64_t fixed = 0;                  // of the matrices Q0
  int64_t all = 0;                    // of all gradients

  /// Part of the compressed matrices' numbers that is not sent: the "compression rate" of the paper's table 1.
  double matrix_rate() const;
  /// The same of all numbers.
  double rate() const;
  /// "PowerSGD of rank 64: 24 matrices of 3,145,728 numbers are sent as 589,824, compression rate 81.2 %; of all gradients
  /// 79.0 % are not sent"
  std::string describe(int64_t rank) const;
  CompressionSizes& operator+=(const CompressionSizes& other);
};
CompressionSizes compression_sizes(const std::vector<GradientPiece>& pieces, const CompressionConfig& config);

class GradientCompression {
 public:
  /// Parameters are on one device and of one type, f32 or f64; whole ones are given hooks that go with this object. They and
  /// the communicators outlive this. Every rank must call it.
  GradientCompression(GradientShare share, const CompressionConfig& config, uint64_t seed);
  GradientCompression(const GradientCompression&) = delete;
  GradientCompression& operator=(const GradientCompression&) = delete;

  /// Gradients of a resblock's parameters are times scale(block), an f32 scalar, and are to be divided by it. `scale` is
  /// asked once a step for each block, by the index of a BlockRunner, when all of its gradients are there.
  void divide_by(std::function<Tensor(int64_t block)> scale) { scale_ = std::move(scale); }

  /// To be called before the last backward pass of a step, so that factors are sent beside it; the first time the pass is only
  /// watched. Without it all is done in reduce().
  void arm();
  /// To be called in that pass as this rank's pieces of a resblock (-1: of all that is in none) are complete. Whole pieces
  /// need no such call.
  void complete(int64_t block);

  /// To be called after the last backward pass of a step: each gradient, this rank's part of a sum, becomes the sum over
  /// replicas as PowerSGD sends it. Parameters that no rank had a gradient of at the first call never get one. Returns the
  /// norm of all gradients, that of the group's other pieces included, an f32 scalar; infinite where the update must be
  /// skipped.
  Tensor reduce();

  /// Blocks that have something to compress, and those of the last step whose factors were begun before reduce().
  int64_t num_blocks() const;
  int64_t num_overlapped() const { return num_overlapped_; }

  /// Of all ranks that share one copy.
  const CompressionSizes& sizes() const { return sizes_; }
  double matrix_rate() const { return sizes_.matrix_rate(); }
  double compression_rate() const { return sizes_.rate(); }
  std::string describe() const { return sizes_.describe(rank_); }

  /// "powersgd.NAME" in the parameter's shape: the error buffers' sums over ranks, for this rank's pieces; numbers that are
  /// summed exactly have 0. They do not depend on shards, ranks or layout. Every rank must call it.
  std::vector<storage::TensorPiece> state() const;
  /// Takes what is called so out of `state` and gives each rank its share. Buffers that it has nothing of start at 0; what
  /// it has of numbers that are now summed exactly is added to their next gradient.
  /// Throws CheckpointError for an unknown name or another shape.
  void load_state(std::vector<storage::NamedTensor>& state);
  /// The same from the parts of a checkpoint, of which the pieces' numbers are read.
  void load_state(const storage::TensorFiles& files);
  /// Whether a tensor of the optimizer's file is one of state().
  static bool is_state(const std::string& name);

 private:
  /// Rows and columns of a parameter's gradient that are one matrix.
  struct Region {
    int64_t row = 0, num_rows = 0, col = 0, num_cols = 0;
    int64_t begin = 0;           // of a flat piece: where its numbers begin in the piece
    bool is_transposed = false;  // of a flat piece: they lie there column after column

    int64_t area() const { return num_rows * num_cols; }
  };
  struct Piece : GradientPiece {
    std::vector<Region> regions;
    size_t first_matrix = 0;         // of the regions, among those of powersgd_
    std::vector<NumberRange> exact;  // flat: numbers of the piece that are in no region
    Tensor carried;                  // flat, of the piece: to be added to the exact numbers once
    bool is_present = true;          // some rank has a gradient of it
  };
  struct Block {
    int64_t index = -1;
    std::vector<size_t> pieces;
    int64_t missing = 0;  // gradients that this pass has yet to complete
    int64_t place = -1;   // in the order in which the watched pass completed blocks
    Tensor scale;         // of this step, where there are scales
    bool is_compressed = false;
  };
  struct Cut {
    std::vector<Piece> pieces;
    std::vector<distributed::CompressedMatrix> matrices;
  };
  static Cut cut(const std::vector<GradientPiece>& pieces, const CompressionConfig& config);
  static std::vector<Region> regions_of_whole(const GradientPiece& piece, int64_t num_shards);
  static std::vector<Region> regions_of_flat(const GradientPiece& piece);
  static std::vector<std::pair<distributed::CompressedMatrix, Region>> regions_of(const GradientPiece& piece,
                                                                                  const CompressionConfig& config);
  GradientCompression(GradientShare share, Cut cut, const CompressionConfig& config, uint64_t seed);
  friend std::vector<distributed::CompressedMatrix> compressed_matrices(const std::vector<GradientPiece>& pieces,
                                                                        const CompressionConfig& config);
  void make_blocks();
  void plan();
  void on_gradient(size_t piece);
  void start_complete();
  void start(Block& block);
  void finish_factors();
  static Tensor values_of(const Piece& piece, const Region& region, const Tensor& whole);
  static void put(const Piece& piece, const Region& region, const Tensor& values, const Tensor& whole);
  std::vector<Tensor> exact_gradients();
  void forget_carried(const Tensor& norm_squared);
  void load_from(const std::function<Tensor(const Piece&)>& read);

  GradientShare share_;
  std::vector<Piece> pieces_;
  distributed::PowerSgd powersgd_;
  int64_t rank_;
  CompressionSizes sizes_;
  std::function<Tensor(int64_t)> scale_;
  std::vector<Block> blocks_;                          // once planned in the agreed order
  std::vector<size_t> block_of_piece_;                 // among blocks_
  std::unique_ptr<distributed::GradientWatch> watch_;  // of whole pieces
  std::vector<distributed::PowerSgd::Round> rounds_;   // of this step, one for each block that was started
  bool is_armed_ = false, is_planned_ = false;
  int64_t num_seen_ = 0;    // blocks that the watched pass completed
  size_t num_started_ = 0;  // blocks of this pass
  int64_t num_overlapped_ = 0;
};

}  // namespace dalle::training

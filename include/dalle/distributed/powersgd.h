// PowerSGD (Vogels et al. 2019) as the paper has it (2.5, E.2): the all-reduce of a gradient matrix G is replaced by two of
// its low-rank factors. What the factors leave out stays in each rank's error buffer and is sent by later updates.
//
//   E += G                    each rank's share of the gradient goes straight into its error buffer
//   P  = sum_ranks E Q0       Q0 is Gaussian, drawn once from (seed, name) and never changed
//   P  = orthonormal columns of P + 1e-6 I, by Householder reflections
//   Q  = sum_ranks E^T P
//   G^ = P Q^T                the global gradient that every rank takes its update with
//   E -= G^ / ranks
//
// Shares: the gradient is the *sum* over ranks of what each gives, which holds where losses are divided by counts of the
// global batch. So the sum over ranks of E, plus what was sent, is conserved, and a rank of the matrix's smaller side
// reproduces the all-reduce. What is left satisfies E Q0 = 0 (summed over ranks), so it is sent as later gradients turn P
// to it: gradients that vary, as those of mini-batches do, are sent whole in time; one that never changed would not be.
//
// A matrix is kept with its smaller side first, which is cheaper to orthogonalise.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "dalle/config/fields.h"
#include "dalle/core/tensor.h"
#include "dalle/distributed/communicator.h"

namespace dalle::distributed {

enum class ErrorFormat { kF32, kF16 };

}  // namespace dalle::distributed

template <>
struct dalle::EnumNames<dalle::distributed::ErrorFormat> {
  static constexpr EnumName<distributed::ErrorFormat> values[] = {{distributed::ErrorFormat::kF32, "f32"},
                                                                  {distributed::ErrorFormat::kF16, "f16"}};
};

namespace dalle::distributed {

struct PowerSgdConfig {
  int64_t rank = 64;
  ErrorFormat error_buffers = ErrorFormat::kF32;
  ErrorFormat factors = ErrorFormat::kF32;
  double p_divisor = 1;
  double q_divisor = 1;

  static void visit_fields(auto& self, auto&& field) {
    field("rank", self.rank, "columns of a compressed gradient's two factors; matrices with no smaller side are exact",
          {.min = 1});
    field("error_buffers", self.error_buffers, "how error buffers are stored: f32, or f16 for 1-6-9 floats");
    field("factors", self.factors, "how factors are sent: f32, or f16 for 1-6-9 floats, too large ones as the largest");
    field("p_divisor", self.p_divisor, "the first factor is sent divided by this, to fit the range of 1-6-9",
          {.min = 1e-30});
    field("q_divisor", self.q_divisor, "the second factor is sent divided by this", {.min = 1e-30});
  }
};

/// A gradient that is compressed.
struct CompressedMatrix {
  std::string name;  // unique; names its Q0
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t rank = 0;  // of its own; 0 = that of all

  int64_t elements() const { return rows * cols; }
  /// Columns of its factors: its own rank, or the one that is given; rows or cols where they are fewer.
  int64_t columns(int64_t common_rank) const;
  /// Of both factors: columns * (rows + cols).
  int64_t factor_elements(int64_t common_rank) const { return columns(common_rank) * (rows + cols); }
};

/// 1 - factors / gradients, counted in numbers: the "compression rate" of the paper's table 1.
double compression_rate(std::span<const CompressedMatrix> matrices, int64_t rank);

class PowerSgd {
 public:
  /// `options`: device, and f32 or f64, of gradients and arithmetic. f64 is for tests; with it f32 means "as they are".
  /// Throws c10::ValueError for another type, an empty matrix, a name that occurs twice, and a rank below 1.
  PowerSgd(std::vector<CompressedMatrix> matrices, const PowerSgdConfig& config, uint64_t seed,
           at::TensorOptions options);

  const std::vector<CompressedMatrix>& matrices() const { return matrices_; }

  // One update is add() for every matrix that has a gradient, start_p(), start_q() and finish() for each of their groups,
  // reduce_rest(), then decompress() for each. What is started runs beside what comes next, so that groups may overlap
  // with each other and with a backward pass. Every rank makes the same calls in the same order. Nothing waits for a GPU
  // but the communicator.

  /// The factors of some matrices (a resblock's) on their way between ranks.
  class Round {
   public:
    Round() = default;

   private:
    friend class PowerSgd;
    std::vector<size_t> group;
    Communicator* ranks = nullptr;
    std::vector<Tensor> parts;  // whose sums are under way: P, then Q
    Tensor sent, gathered;      // their memory; gathered: as 1-6-9, of all ranks
    Pending sum;
  };

  /// E += gradient / scale, `gradient` [rows, cols] being this rank's share, `scale` the f32 scalar of its resblock (none
  /// for 1). A gradient that is not all finite is left out, and remembered. May be called several times an update.
  void add(size_t matrix, const Tensor& gradient, const Tensor& scale = {});

  /// Starts to sum P of these matrices, which have their gradients: one all-reduce. `ranks` outlives the round.
  Round start_p(std::vector<size_t> group, Communicator& ranks);
  /// Waits for P, and starts to sum Q: one all-reduce.
  void start_q(Round& round);
  /// Waits for Q.
  void finish(Round& round);
  /// All three.
  void reduce_factors(std::vector<size_t> group, Communicator& ranks);

  /// Replaces `others`, the gradients that are not compressed, by their sums over ranks, in one all-reduce of f32 that also
  /// carries the flags. Returns the squared norm of the whole global gradient, an f64 scalar: sum of ||Q||^2, equal to that
  /// of ||P Q^T||^2, and of the others'. Infinite where on any rank a gradient, an error buffer or a factor, before it was
  /// clamped, is not finite: then no weight and no moment may be updated. Where gradients are sharded over a machine as well,
  /// its ranks' results are to be added.
  Tensor reduce_rest(std::vector<Tensor>& others, Communicator& ranks);

  /// The global gradient [rows, cols], where the norm is finite. The error buffer becomes E - G^ / ranks where the factors
  /// are finite on every rank; else it stays where it is finite itself; else it is zeroed.
  Tensor decompress(size_t matrix);

  /// All calls of one update, with one group: the global gradients, in order of matrices. Sets `norm_squared`.
  std::vector<Tensor> reduce(const std::vector<Tensor>& gradients, std::vector<Tensor>& others, Communicator& ranks,
                             Tensor& norm_squared);

  /// This rank's error buffer [rows, cols] as numbers.
  Tensor error(size_t matrix) const;
  /// The error buffers' sums over ranks, in order of matrices: all that later updates depend on, so what a checkpoint
  /// holds. Every rank must call it.
  std::vector<Tensor> error_sums(Communicator& ranks) const;
  /// Gives each of `num_ranks` ranks its share of such sums, however many ranks wrote them. Throws CheckpointError for
  /// another number of tensors or other shapes, and then changes nothing.
  void load_error_sums(const std::vector<Tensor>& sums, int64_t num_ranks);

  /// Bytes of error buffers and of the matrices Q0.
  int64_t state_bytes() const;

 private:
  struct Buffers {
    bool transposed = false;  // kept as [cols, rows]
    int64_t m = 0, n = 0, rank = 0;
    Tensor q0_NR;
    Tensor error_MN;      // in `options`, or int16 of 1-6-9
    Tensor gradient_bad;  // bool scalar: a gradient of this update was not finite here
    Tensor factors_bad;   // bool scalar: so the error buffer or a factor; after reduce_rest() on any rank
    Tensor p_MR, q_NR;    // of this update, the same on every rank
  };
  Tensor numbers(const Buffers& buffers) const;
  void store(Buffers& buffers, const Tensor& error_MN) const;
  void start_sum(Round& round, double divisor) const;
  std::vector<Tensor> finish_sum(Round& round, double divisor) const;

  std::vector<CompressedMatrix> matrices_;
  PowerSgdConfig config_;
  at::TensorOptions options_;
  std::vector<Buffers> buffers_;
  int64_t num_ranks_ = 1;  // of this update
};

/// Orthonormal columns [m, r] that span those of `p` [m, r], r <= m, or more where they are dependent: Q of LAPACK's
/// Householder QR, signs as it gives them.
Tensor orthonormal_columns(const Tensor& p);

}  // namespace dalle::distributed

// PowerSGD (distributed/powersgd.h) between a model's gradients and its optimizer. Matrices and kernels of residual blocks are
// compressed where that sends fewer numbers; all else is summed exactly. The matrices of queries, keys and values are
// compressed apart (paper, table 2), a kernel as [out, in * height * width].
//
// An update depends on the sums over ranks alone, of gradients and of error buffers: so a run is the same for any number of
// ranks, one included, up to rounding.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dalle/distributed/powersgd.h"
#include "dalle/layers/module.h"
#include "dalle/storage/named_tensor.h"

namespace dalle::training {

class GradientCompression {
 public:
  /// For the parameters that are trained: on one device, of one type, f32 or f64. `parameters` and `ranks` outlive this.
  GradientCompression(const std::vector<layers::NamedParameter>& parameters, const distributed::PowerSgdConfig& config,
                      uint64_t seed, distributed::Communicator& ranks);

  /// To be called after the last backward pass of a step: each gradient, this rank's part of a sum, becomes the sum over
  /// ranks as PowerSGD sends it. Parameters that no rank had a gradient of at the first call never get one. Returns the norm
  /// of all gradients, an f32 scalar; infinite where the update must be skipped.
  Tensor reduce();

  /// The part of all trained numbers' gradients that is not sent.
  double compression_rate() const;
  /// "PowerSGD of rank 64: 24 matrices of 3,145,728 numbers are sent as 589,824; of all gradients 79 % are not sent"
  std::string describe() const;

  /// "powersgd.NAME": the error buffers' sums over ranks. Every rank must call it.
  std::vector<storage::NamedTensor> state() const;
  /// Takes what is called so out of `state` and gives each rank its share. Buffers that it has nothing of start at 0.
  /// Throws CheckpointError for an unknown name or another shape.
  void load_state(std::vector<storage::NamedTensor>& state);

 private:
  /// Rows of a parameter's gradient that are one matrix.
  struct Part {
    layers::Parameter* parameter;
    int64_t first_row = 0;
    int64_t num_rows = 0;
  };
  void plan();
  /// The gradient as [dim 0, all else].
  static Tensor matrix_of(const Tensor& gradient) { return gradient.flatten(1); }

  distributed::Communicator& ranks_;
  std::vector<Part> parts_;                 // in the order of powersgd_'s matrices
  std::vector<layers::Parameter*> others_;  // summed exactly
  distributed::PowerSgd powersgd_;
  int64_t rank_;
  bool is_planned_ = false;
  std::vector<layers::Parameter*> present_;  // parameters that some rank has a gradient of
};

}  // namespace dalle::training

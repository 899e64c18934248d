// AdamW (Loshchilov and Hutter 2019) as torch.optim.AdamW computes it: decoupled weight decay, bias-corrected moments, in
// f32. Decay applies to parameters with `decays` only. Memory for the moments is taken at a parameter's first gradient, so
// frozen parameters cost none, and each parameter counts its own updates, as PyTorch does. The matrices of residual blocks
// may have moments of 16 bits (paper B.2; optim/sixteen_bit_moments.h): half the memory.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "dalle/core/enum_names.h"
#include "dalle/layers/module.h"
#include "dalle/storage/named_tensor.h"

namespace dalle::optim {

/// How the moments of residual blocks' matrices are stored: f32, or f16 for 1-6-9 means and 0-6-10 variances.
enum class Moments { kF32, kF16 };

}  // namespace dalle::optim

namespace dalle {
template <>
struct EnumNames<optim::Moments> {
  static constexpr EnumName<optim::Moments> values[] = {{optim::Moments::kF32, "f32"}, {optim::Moments::kF16, "f16"}};
};
}  // namespace dalle

namespace dalle::optim {

/// Defaults are the paper's for the dVAE (A.2); the prior has beta2 0.96 and weight_decay 4.5e-2 (B.2).
struct AdamWConfig {
  double beta1 = 0.9;
  double beta2 = 0.999;
  double eps = 1e-8;
  double weight_decay = 1e-4;
  Moments moments = Moments::kF32;

  static void visit_fields(auto& self, auto&& field) {
    field("beta1", self.beta1, "decay of the running mean of gradients", {.min = 0, .max = 1, .changeable = true});
    field("beta2", self.beta2, "decay of the running mean of squared gradients",
          {.min = 0, .max = 1, .changeable = true});
    field("eps", self.eps, "added to the root of the second moment", {.min = 0, .changeable = true});
    field("weight_decay", self.weight_decay, "decoupled weight decay of matrices and kernels, times the learning rate",
          {.min = 0, .changeable = true});
    field("moments", self.moments,
          "running moments of residual blocks' matrices: f32, or f16 for the paper's 1-6-9 and 0-6-10 floats");
  }
  /// Throws ConfigError where a beta is not below 1.
  void validate(const std::string& place) const;
};

class AdamW {
 public:
  AdamW(std::vector<layers::NamedParameter> parameters, const AdamWConfig& config);

  /// One update of every parameter that has a gradient. With `skip`, an f32 scalar on the parameters' device, 1 makes this
  /// a step that changes no weight, moment or count, and 0 an ordinary one. No synchronisation with the device.
  /// skip_P, where not empty: such a scalar for each parameter, which then counts in place of `skip` for its weight, moments
  /// and count. Parameters that share one are updated together.
  void step(double lr, const Tensor& skip = {}, const std::vector<Tensor>& skip_P = {});
  /// Drops all gradients.
  void zero_grad();
  /// Calls of step() so far that were not skipped. Waits for the device.
  int64_t steps() const;

  /// "steps" (i64), and per updated parameter "NAME.exp_avg", "NAME.exp_avg_sq" (f32, or i16 of 16-bit moments) and
  /// "NAME.step" (i64). The moments share memory with the optimizer: write them out before the next step.
  std::vector<storage::NamedTensor> state() const;
  /// Throws CheckpointError for a missing or unknown name, another shape or format, and then changes nothing. Parameters
  /// that the state has nothing of start afresh.
  void load_state(const std::vector<storage::NamedTensor>& state);

 private:
  struct Slot {
    layers::NamedParameter parameter;
    bool has_small_moments = false;
    Tensor exp_avg;  // laid out as the parameter; undefined before the first gradient
    Tensor exp_avg_sq;
    Tensor step;  // f32 scalar on the parameter's device: updates of this parameter
  };
  void allocate(Slot& slot) const;
  void update(const std::vector<Slot*>& slots, double weight_decay, double lr, const Tensor& skip);
  void update_small(Slot& slot, double lr, const Tensor& skip);

  std::vector<Slot> slots_;
  AdamWConfig config_;
  Tensor steps_;  // i64 scalar on the parameters' device
};

}  // namespace dalle::optim

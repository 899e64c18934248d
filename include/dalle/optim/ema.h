// Exponential moving average of weights (paper A.2: 0.999 at each update of the dVAE; B.2: 0.99 at every 25th of the
// prior). Evaluation swaps tensor handles, not values, so it costs no memory and restores the weights bit for bit.
#pragma once

#include <cstdint>
#include <vector>

#include "dalle/layers/module.h"
#include "dalle/storage/named_tensor.h"

namespace dalle::optim {

class Ema {
 public:
  /// Starts as a copy of the parameters, which must be materialised and outlive this. Throws c10::ValueError unless
  /// 0 <= decay < 1 and every >= 1.
  Ema(std::vector<layers::NamedParameter> parameters, double decay, int64_t every = 1);

  /// Call once after each optimizer update; `step` is the number of updates done, from 1. Acts where it is a multiple of
  /// `every`: average = decay * average + (1 - decay) * weight. With `skip`, an f32 scalar on the parameters' device, 1
  /// leaves the averages as they are (but for the sign of a zero). No synchronisation with the device.
  void update(int64_t step, const Tensor& skip = {});

  /// The averages by parameter name, sharing memory with this.
  std::vector<storage::NamedTensor> tensors() const;
  /// Throws CheckpointError for missing or unknown names or other shapes, and then changes nothing.
  void load(const std::vector<storage::NamedTensor>& tensors);

 private:
  friend class EmaScope;
  void swap();

  std::vector<layers::NamedParameter> parameters_;
  std::vector<Tensor> averages_;  // laid out as the parameters
  double decay_;
  int64_t every_;
  bool swapped_ = false;
};

/// While it lives the model computes with the averages, which take no gradients. May not be nested or updated within.
class EmaScope {
 public:
  explicit EmaScope(Ema& ema);
  ~EmaScope();
  EmaScope(const EmaScope&) = delete;
  EmaScope& operator=(const EmaScope&) = delete;

 private:
  Ema& ema_;
};

}  // namespace dalle::optim

// AdamW's update of one parameter whose moments are 16-bit floats (paper B.2): the running mean 1-6-9, the running variance
// 0-6-10. Arithmetic is f32, each moment is rounded once an update, and the update uses them before that. The variance is
// cut at 5 before it is used and kept.
//
// A moment moves only where its change is at least half the distance of neighbouring numbers: means by their 1 - beta1 of
// .1 always, variances with 1 - beta2 = .04 too; with beta2 = .999 (the dVAE's) they follow gradients only where g^2 differs
// from them by a quarter to a half.
#pragma once

#include "dalle/core/tensor.h"

namespace dalle::optim {

/// The largest running variance (B.2: "clipped by value to 5").
inline constexpr float kLargestVariance = 5;

struct AdamWNumbers {
  double lr = 0;
  double beta1 = 0.9;
  double beta2 = 0.96;
  double eps = 1e-8;
  double weight_decay = 0;
};

/// weight, gradient f32 of the same shape and layout; exp_avg and exp_avg_sq their int16, changed in place like `weight`.
/// `step`, an f32 scalar, is the number of this update, from 1. With `skip`, an f32 scalar, 1 changes nothing. On the CPU a
/// vectorised loop, elsewhere tensor operators that do not wait for the device.
void adamw_with_sixteen_bit_moments(const Tensor& weight, const Tensor& gradient, const Tensor& exp_avg,
                                    const Tensor& exp_avg_sq, const Tensor& step, const AdamWNumbers& numbers,
                                    const Tensor& skip = {});

/// The same by tensor operators, for any device and layout.
void adamw_by_operators(const Tensor& weight, const Tensor& gradient, const Tensor& exp_avg, const Tensor& exp_avg_sq,
                        const Tensor& step, const AdamWNumbers& numbers, const Tensor& skip = {});

}  // namespace dalle::optim

// Analytic gradients against central differences, in f64.
#pragma once

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>
#include <gtest/gtest.h>

#include <functional>

#include "support/tensor_matchers.h"

namespace dalle::testing {

/// f: f64 tensor -> scalar, smooth at x. Central differences of step 1e-5 have an error near 1e-10.
inline ::testing::AssertionResult gradient_is_right(const std::function<Tensor(const Tensor&)>& f, const Tensor& x,
                                                    double tolerance = 1e-7) {
  const Tensor leaf = x.detach().clone().requires_grad_();
  f(leaf).backward();
  const at::NoGradGuard no_grad;
  Tensor numeric = at::zeros_like(x).contiguous(), probe = x.detach().clone().contiguous();
  constexpr double kStep = 1e-5;
  double* value = probe.mutable_data_ptr<double>();
  double* slope = numeric.mutable_data_ptr<double>();
  for (int64_t i = 0; i < x.numel(); ++i) {
    const double centre = value[i];
    value[i] = centre + kStep;
    const double above = f(probe).item<double>();
    value[i] = centre - kStep;
    const double below = f(probe).item<double>();
    value[i] = centre;
    slope[i] = (above - below) / (2 * kStep);
  }
  return close_to(leaf.grad(), numeric, tolerance);
}

}  // namespace dalle::testing

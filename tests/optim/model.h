// A small set of parameters for the optimizer tests: a matrix and a kernel that decay, a bias that does not.
#pragma once

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>

#include "dalle/core/random.h"
#include "dalle/layers/module.h"
#include "support/random_tensor.h"
#include "support/thrown_message.h"

namespace dalle::optim {

using testing::message_of;
using testing::random_tensor;

struct TestModel : layers::Module {
  TestModel()
      : matrix(add_parameter("matrix", {3, 4}, layers::Init::normal(1))),
        kernel(add_parameter("kernel", {2, 3, 3, 3}, layers::Init::normal(1), true, /*channels_last=*/true)),
        bias(add_parameter("bias", {5}, layers::Init::normal(1), false)),
        late(add_parameter("late", {2, 2}, layers::Init::normal(1))) {
    materialize(at::kCPU);
    initialize(1);
  }
  layers::Parameter &matrix, &kernel, &bias, &late;
};

/// Gives every parameter a gradient, different for each `seed`.
inline void set_gradients(const layers::Module& module, uint64_t seed) {
  for (const auto& [name, parameter] : module.named_parameters()) {
    parameter->tensor.mutable_grad() = random_tensor(stable_hash(name) + seed, parameter->tensor.sizes());
  }
}

}  // namespace dalle::optim

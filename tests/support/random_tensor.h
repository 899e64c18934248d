// Values for tests that need some, the same on every machine.
#pragma once

#include <ATen/ATen.h>

#include "dalle/core/random.h"

namespace dalle::testing {

/// Standard normal f32 of a shape, named by `seed`.
inline Tensor random_tensor(uint64_t seed, at::IntArrayRef shape) {
  return normal(random_key(seed, Purpose::kInit), c10::multiply_integers(shape)).reshape(shape);
}

}  // namespace dalle::testing

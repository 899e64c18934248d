// Number formats as configs name them (core/precision.h).
#pragma once

#include <string>

#include "dalle/core/tensor.h"

namespace dalle {

/// "f64", "f32", "bf16" or "fp16"; another type as LibTorch calls it.
inline std::string dtype_name(at::ScalarType type) {
  switch (type) {
    case at::kDouble:
      return "f64";
    case at::kFloat:
      return "f32";
    case at::kBFloat16:
      return "bf16";
    case at::kHalf:
      return "fp16";
    default:
      return c10::toString(type);
  }
}

}  // namespace dalle

// One tensor of every type that our files hold: the values of scripts/golden/safetensors_file.py and torch_files.py.
#pragma once

#include <ATen/ATen.h>

#include <vector>

#include "dalle/storage/named_tensor.h"

namespace dalle::storage {

inline std::vector<NamedTensor> every_type() {
  const Tensor ramp = at::arange(24, at::kLong).reshape({2, 3, 4});
  const Tensor fractions = ramp.to(at::kDouble) / 4 - 2;
  return {{"float64", fractions},
          {"int64", ramp - 5},
          {"float32", fractions.to(at::kFloat)},
          {"int32", (ramp - 5).to(at::kInt)},
          {"scalar", at::scalar_tensor(2.5, at::kFloat)},
          {"empty", at::zeros({0, 7})},
          {"float16", fractions.to(at::kHalf)},
          {"bfloat16", fractions.to(at::kBFloat16)},
          {"int16", (ramp - 5).to(at::kShort)},
          {"int8", (ramp - 5).to(at::kChar)},
          {"uint8", (ramp * 10).to(at::kByte)},
          {"bool", ramp.remainder(3).eq(0)}};
}

}  // namespace dalle::storage

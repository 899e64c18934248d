// The tensor alias every header uses. ATen/core/Tensor.h costs 1.5 s to compile where torch/torch.h costs 19 s.
#pragma once

#include <ATen/core/Tensor.h>

namespace dalle {

using Tensor = at::Tensor;

}  // namespace dalle

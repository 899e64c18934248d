// Pictures in channels-last memory seen as matrices: a row of channels for each position.
#pragma once

#include <ATen/core/Tensor.h>

#include "dalle/core/tensor.h"

namespace dalle::layers {

/// [B, C, H, W] -> [B H W, C]; no copy where the memory is channels-last already.
inline Tensor channel_rows(const Tensor& x_BCHW) {
  return x_BCHW.permute({0, 2, 3, 1}).contiguous().view({-1, x_BCHW.size(1)});
}

/// The reverse, as a view in channels-last memory: [B H W, C] -> [B, C, H, W] with B, H and W from `sizes_BxHW`.
inline Tensor from_channel_rows(const Tensor& rows_NC, at::IntArrayRef sizes_BxHW) {
  return rows_NC.view({sizes_BxHW[0], sizes_BxHW[2], sizes_BxHW[3], rows_NC.size(1)}).permute({0, 3, 1, 2});
}

}  // namespace dalle::layers

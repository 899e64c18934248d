// A warp makes one output of up to eight rows: decoding waits for weights, and each is read once for those rows, 16 at a time
// by each lane. Rows come from the caches, which all warps share.
#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <cuda_bf16.h>

#include "int8_product_cuda.h"

namespace dalle::layers::detail {
namespace {

constexpr int kRows = 8, kWarps = 4, kLanes = 32, kStretch = 16;
static_assert(kStretch == kInt8Stretch);

__device__ void load(const float* from, float (&to)[kStretch]) {
  for (int i = 0; i < kStretch / 4; ++i) {
    const float4 four = reinterpret_cast<const float4*>(from)[i];
    to[4 * i] = four.x;
    to[4 * i + 1] = four.y;
    to[4 * i + 2] = four.z;
    to[4 * i + 3] = four.w;
  }
}

__device__ void load(const __nv_bfloat16* from, float (&to)[kStretch]) {
  for (int i = 0; i < kStretch / 8; ++i) {
    const uint4 eight = reinterpret_cast<const uint4*>(from)[i];
    const unsigned words[4] = {eight.x, eight.y, eight.z, eight.w};
    for (int pair = 0; pair < 4; ++pair) {
      to[8 * i + 2 * pair] = __uint_as_float(words[pair] << 16);
      to[8 * i + 2 * pair + 1] = __uint_as_float(words[pair] & 0xFFFF0000u);
    }
  }
}

__device__ void load(const int8_t* from, float (&to)[kStretch]) {
  const int4 all = *reinterpret_cast<const int4*>(from);
  const int words[4] = {all.x, all.y, all.z, all.w};
  for (int i = 0; i < kStretch; ++i) to[i] = static_cast<float>(static_cast<int8_t>(words[i / 4] >> (8 * (i % 4))));
}

template <class T>
__global__ void int8_product_kernel(const T* x, const int8_t* weight, const float* scale, float* out, int64_t rows,
                                    int64_t columns, int64_t depth) {
  const int lane = static_cast<int>(threadIdx.x) % kLanes;
  const int64_t column = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.x / kLanes;
  const int64_t first = static_cast<int64_t>(blockIdx.y) * kRows;
  if (column >= columns) return;
  const int64_t left = rows - first;
  const int count = left < kRows ? static_cast<int>(left) : kRows;
  float sum[kRows] = {};
  for (int64_t k = lane * kStretch; k < depth; k += kLanes * kStretch) {
    float b[kStretch], a[kStretch];
    load(weight + column * depth + k, b);
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (r >= count) break;
      load(x + (first + r) * depth + k, a);
#pragma unroll
      for (int i = 0; i < kStretch; ++i) sum[r] += a[i] * b[i];
    }
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
    for (int step = kLanes / 2; step > 0; step /= 2) sum[r] += __shfl_xor_sync(0xFFFFFFFFu, sum[r], step);
    if (lane == 0 && r < count) out[(first + r) * columns + column] = sum[r] * scale[column];
  }
}

}  // namespace

void int8_product_cuda(const Tensor& x_MK, const Tensor& weight_NK, const Tensor& scale_N, Tensor& out_MN) {
  const c10::cuda::CUDAGuard guard(x_MK.device());
  const int64_t rows = x_MK.size(0), depth = x_MK.size(1), columns = weight_NK.size(0);
  if (rows == 0) return;
  const dim3 grid(static_cast<unsigned>((columns + kWarps - 1) / kWarps),
                  static_cast<unsigned>((rows + kRows - 1) / kRows));
  const auto stream = c10::cuda::getCurrentCUDAStream();
  const auto* weight = weight_NK.const_data_ptr<int8_t>();
  const auto* scale = scale_N.const_data_ptr<float>();
  auto* out = out_MN.mutable_data_ptr<float>();
  if (x_MK.scalar_type() == at::kBFloat16) {
    const auto* x = reinterpret_cast<const __nv_bfloat16*>(x_MK.const_data_ptr<c10::BFloat16>());
    int8_product_kernel<<<grid, kWarps * kLanes, 0, stream>>>(x, weight, scale, out, rows, columns, depth);
  } else {
    int8_product_kernel<<<grid, kWarps * kLanes, 0, stream>>>(x_MK.const_data_ptr<float>(), weight, scale, out, rows,
                                                              columns, depth);
  }
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace dalle::layers::detail

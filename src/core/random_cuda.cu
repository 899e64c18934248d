// Philox4x32-10 on the GPU: one thread computes one block of four words, so that no word is computed twice.
#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>

#include "dalle/core/philox_cuda.h"
#include "dalle/core/random_cuda.h"

namespace dalle::detail {
namespace {

constexpr int64_t kThreads = 256;
constexpr int64_t kMaxBlocks = 65535;

// Item i is block i % blocks_per_row of row i / blocks_per_row; its thread writes those of the four elements that lie
// in the row (the first and last block of a row may stick out).
__global__ void uniform_rows_kernel(const int64_t* keys, float* out, int64_t rows, int64_t row_size, int64_t offset,
                                    int64_t blocks_per_row) {
  const int64_t stride = static_cast<int64_t>(gridDim.x) * blockDim.x;
  const int64_t begin = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  for (int64_t item = begin; item < rows * blocks_per_row; item += stride) {
    const int64_t row = item / blocks_per_row;
    const uint64_t block = static_cast<uint64_t>(offset / 4 + item % blocks_per_row);
    const uint4 block_words = stream_block(keys[2 * row], keys[2 * row + 1], block);
    const uint32_t words[4] = {block_words.x, block_words.y, block_words.z, block_words.w};
    const int64_t first = static_cast<int64_t>(block) * 4 - offset;
    for (int i = 0; i < 4; ++i) {
      const int64_t column = first + i;
      if (column >= 0 && column < row_size) out[row * row_size + column] = to_uniform(words[i]);
    }
  }
}

}  // namespace

void uniform_rows_cuda(const Tensor& keys, Tensor& out, int64_t offset) {
  TORCH_CHECK_VALUE(offset >= 0, "uniform_rows: offset must be >= 0, got ", offset);
  TORCH_CHECK_VALUE(out.dim() == 2 && out.is_cuda() && out.is_contiguous() && out.scalar_type() == at::kFloat,
                    "uniform_rows: expected a contiguous f32 [rows, row_size] tensor on CUDA, got ", out.sizes());
  const int64_t rows = out.size(0);
  const int64_t row_size = out.size(1);
  TORCH_CHECK_VALUE(keys.device() == out.device() && keys.is_contiguous() && keys.scalar_type() == at::kLong &&
                        keys.dim() == 2 && keys.size(0) == rows && keys.size(1) == 2,
                    "uniform_rows: expected contiguous int64 keys [", rows, ", 2] beside the output, got ",
                    keys.sizes());
  if (out.numel() == 0) return;
  const c10::cuda::CUDAGuard guard(out.device());
  const int64_t blocks_per_row = (offset + row_size - 1) / 4 - offset / 4 + 1;
  const int64_t grid = std::min((rows * blocks_per_row + kThreads - 1) / kThreads, kMaxBlocks);
  uniform_rows_kernel<<<static_cast<unsigned>(grid), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
      keys.const_data_ptr<int64_t>(), out.mutable_data_ptr<float>(), rows, row_size, offset, blocks_per_row);
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace dalle::detail

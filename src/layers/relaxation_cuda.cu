// One thread block per row. The noise is drawn again in each pass rather than stored: Philox costs less than memory.
#include <ATen/Functions.h>
#include <ATen/core/Tensor.h>
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include <cmath>
#include <type_traits>

#include "dalle/core/philox_cuda.h"
#include "dalle/layers/relaxation_kernels.h"

namespace dalle::layers::detail {
namespace {

constexpr int kThreads = 256;
constexpr int kWarps = kThreads / 32;

// Running softmax sums of a row: of the logits (with the sum that their entropy needs) and of the perturbed logits.
struct Running {
  float max_logit = -INFINITY, sum = 0, weighted = 0;  // sum e, sum e (logit - max)
  float max_perturbed = -INFINITY, numerators = 0;
  float best = -INFINITY;  // of the perturbed logits, with its place
  int64_t best_code = 0;
};

__device__ float factor_of(float from, float to) { return from == to ? 1.0f : expf(from - to); }

__device__ void add_logit(Running& r, float logit) {
  if (logit > r.max_logit) {
    const float shift = r.max_logit - logit, factor = r.sum == 0 ? 0.0f : expf(shift);
    r.weighted = r.sum == 0 ? 0.0f : factor * (r.weighted + r.sum * shift);
    r.sum *= factor;
    r.max_logit = logit;
  }
  const float below = logit - r.max_logit, e = expf(below);
  r.sum += e;
  r.weighted += e * below;
}

__device__ void add_perturbed(Running& r, float perturbed, int64_t code) {
  if (perturbed > r.best || (perturbed == r.best && code < r.best_code)) {
    r.best = perturbed;
    r.best_code = code;
  }
  if (perturbed > r.max_perturbed) {
    r.numerators *= r.numerators == 0 ? 0.0f : expf(r.max_perturbed - perturbed);
    r.max_perturbed = perturbed;
  }
  r.numerators += expf(perturbed - r.max_perturbed);
}

__device__ void absorb(Running& all, const Running& part) {
  const float max_logit = fmaxf(all.max_logit, part.max_logit);
  const float mine = factor_of(all.max_logit, max_logit), theirs = factor_of(part.max_logit, max_logit);
  all.weighted = (all.sum == 0 ? 0.0f : mine * (all.weighted + all.sum * (all.max_logit - max_logit))) +
                 (part.sum == 0 ? 0.0f : theirs * (part.weighted + part.sum * (part.max_logit - max_logit)));
  all.sum = mine * all.sum + theirs * part.sum;
  all.max_logit = max_logit;

  const float max_perturbed = fmaxf(all.max_perturbed, part.max_perturbed);
  all.numerators = factor_of(all.max_perturbed, max_perturbed) * all.numerators +
                   factor_of(part.max_perturbed, max_perturbed) * part.numerators;
  all.max_perturbed = max_perturbed;
  if (part.best > all.best || (part.best == all.best && part.best_code < all.best_code)) {
    all.best = part.best;
    all.best_code = part.best_code;
  }
}

// The same tree over the block's threads every time: results are repeatable.
__device__ Running reduce(Running value) {
  __shared__ Running parts[kThreads];
  parts[threadIdx.x] = value;
  __syncthreads();
  for (int half = kThreads / 2; half > 0; half /= 2) {
    if (threadIdx.x < half) absorb(parts[threadIdx.x], parts[threadIdx.x + half]);
    __syncthreads();
  }
  return parts[0];
}

__device__ float reduce_sum(float value) {
  __shared__ float parts[kWarps];
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_down_sync(0xFFFFFFFFu, value, offset);
  if (threadIdx.x % 32 == 0) parts[threadIdx.x / 32] = value;
  __syncthreads();
  float sum = 0;
  for (int warp = 0; warp < kWarps; ++warp) sum += parts[warp];
  __syncthreads();  // `parts` may be used again at once
  return sum;
}

// Calls visit(code, gumbel) for this thread's codes of a row: the elements of whole Philox blocks, kThreads apart.
template <class Visit>
__device__ void visit_codes(const int64_t* keys, int64_t picture, int64_t first, int64_t vocab, const Visit& visit) {
  for (int64_t block = first / 4 + threadIdx.x; block * 4 < first + vocab; block += kThreads) {
    const uint4 drawn =
        dalle::detail::stream_block(keys[2 * picture], keys[2 * picture + 1], static_cast<uint64_t>(block));
    const uint32_t words[4] = {drawn.x, drawn.y, drawn.z, drawn.w};
    for (int i = 0; i < 4; ++i) {
      const int64_t code = block * 4 + i - first;
      if (code >= 0 && code < vocab) visit(code, -logf(-logf(dalle::detail::to_uniform(words[i]))));
    }
  }
}

template <class Type>
__global__ void relax_kernel(const Type* logits, const int64_t* keys, int64_t positions, int64_t vocab,
                             float inverse_temperature, Type* soft, Type* hard, float* log_normalizer, float* kl) {
  const int64_t row = blockIdx.x, picture = row / positions, first = row % positions * vocab;
  const Type* row_logits = logits + row * vocab;
  Running mine;
  visit_codes(keys, picture, first, vocab, [&](int64_t code, float gumbel) {
    const float logit = static_cast<float>(row_logits[code]);
    add_logit(mine, logit);
    add_perturbed(mine, (logit + gumbel) * inverse_temperature, code);
  });
  const Running all = reduce(mine);
  const float inverse_sum = 1 / all.numerators;
  visit_codes(keys, picture, first, vocab, [&](int64_t code, float gumbel) {
    const float perturbed = (static_cast<float>(row_logits[code]) + gumbel) * inverse_temperature;
    soft[row * vocab + code] = static_cast<Type>(expf(perturbed - all.max_perturbed) * inverse_sum);
  });
  if (threadIdx.x == 0) {
    if (hard != nullptr) hard[row * vocab + all.best_code] = static_cast<Type>(1.0f);
    const float log_sum = logf(all.sum);
    log_normalizer[row] = all.max_logit + log_sum;
    kl[row] = all.weighted / all.sum - log_sum + logf(static_cast<float>(vocab));
  }
}

template <class Type>
__global__ void relax_backward_kernel(const Type* grad_soft, const float* grad_kl, const Type* logits, const Type* soft,
                                      const float* log_normalizer, const float* kl, int64_t vocab,
                                      float inverse_temperature, Type* out) {
  const int64_t row = blockIdx.x, base = row * vocab;
  float mean = 0;  // of the codes' gradient under the soft codes, whose sum is 1 but for their rounding
  if (grad_soft != nullptr) {
    float products = 0, weights = 0;
    for (int64_t code = threadIdx.x; code < vocab; code += kThreads) {
      const float weight = static_cast<float>(soft[base + code]);
      products += static_cast<float>(grad_soft[base + code]) * weight;
      weights += weight;
    }
    mean = reduce_sum(products) / reduce_sum(weights);
  }
  const float negative_entropy = kl[row] - logf(static_cast<float>(vocab));
  for (int64_t code = threadIdx.x; code < vocab; code += kThreads) {
    float grad = 0;
    if (grad_soft != nullptr) {
      grad = static_cast<float>(soft[base + code]) * (static_cast<float>(grad_soft[base + code]) - mean) *
             inverse_temperature;
    }
    if (grad_kl != nullptr) {
      const float log_p = static_cast<float>(logits[base + code]) - log_normalizer[row];
      grad += grad_kl[row] * expf(log_p) * (log_p - negative_entropy);
    }
    out[base + code] = static_cast<Type>(grad);
  }
}

// Calls launch with a null pointer to the tensors' element type.
template <class Launch>
void for_type(at::ScalarType type, const Launch& launch) {
  switch (type) {
    case at::kFloat:
      return launch(static_cast<float*>(nullptr));
    case at::kBFloat16:
      return launch(static_cast<at::BFloat16*>(nullptr));
    case at::kHalf:
      return launch(static_cast<at::Half*>(nullptr));
    default:
      TORCH_CHECK_VALUE(false, "[relax] expected f32, bf16 or f16 logits, got ", type);
  }
}

template <class Type>
const Type* data_or_null(const at::Tensor& tensor) {
  return tensor.defined() ? tensor.const_data_ptr<Type>() : nullptr;
}

}  // namespace

RelaxationRows relax_rows_cuda(const at::Tensor& logits_NV, const at::Tensor& keys_B2, double temperature, bool hard) {
  const c10::cuda::CUDAGuard guard(logits_NV.device());
  const int64_t rows = logits_NV.size(0), vocab = logits_NV.size(1), positions = rows / keys_B2.size(0);
  const auto f32 = logits_NV.options().dtype(at::kFloat);
  RelaxationRows out{at::empty_like(logits_NV),
                     hard ? at::zeros_like(logits_NV) : at::Tensor(),
                     {at::empty({rows}, f32), at::empty({rows}, f32)}};
  for_type(logits_NV.scalar_type(), [&](auto* element) {
    using Type = std::remove_pointer_t<decltype(element)>;
    relax_kernel<Type><<<static_cast<unsigned>(rows), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
        logits_NV.const_data_ptr<Type>(), keys_B2.const_data_ptr<int64_t>(), positions, vocab,
        static_cast<float>(1 / temperature), out.soft_NV.mutable_data_ptr<Type>(),
        hard ? out.hard_NV.mutable_data_ptr<Type>() : nullptr,
        out.statistics.log_normalizer_N.mutable_data_ptr<float>(), out.statistics.kl_N.mutable_data_ptr<float>());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
  return out;
}

void relax_rows_backward_cuda(const at::Tensor& grad_soft_NV, const at::Tensor& grad_kl_N, const at::Tensor& logits_NV,
                              const at::Tensor& soft_NV, const RowStatistics& statistics, double temperature,
                              const at::Tensor& out_NV) {
  const c10::cuda::CUDAGuard guard(logits_NV.device());
  const at::Tensor grad_kl = grad_kl_N.defined() ? grad_kl_N.to(at::kFloat).contiguous() : at::Tensor();
  for_type(logits_NV.scalar_type(), [&](auto* element) {
    using Type = std::remove_pointer_t<decltype(element)>;
    relax_backward_kernel<Type>
        <<<static_cast<unsigned>(logits_NV.size(0)), kThreads, 0, c10::cuda::getCurrentCUDAStream()>>>(
            data_or_null<Type>(grad_soft_NV), data_or_null<float>(grad_kl), logits_NV.const_data_ptr<Type>(),
            soft_NV.const_data_ptr<Type>(), statistics.log_normalizer_N.const_data_ptr<float>(),
            statistics.kl_N.const_data_ptr<float>(), logits_NV.size(1), static_cast<float>(1 / temperature),
            out_NV.mutable_data_ptr<Type>());
  });
  C10_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace dalle::layers::detail

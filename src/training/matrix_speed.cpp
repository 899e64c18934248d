#include "dalle/training/matrix_speed.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <atomic>

#include "dalle/core/vectorise.h"
#include "dalle/training/metrics.h"

namespace dalle::training {
namespace {

// Their sum, in eight registers of eight: nothing but loads and additions.
DALLE_VECTORISED uint64_t sum_of_words(const uint64_t* words, int64_t count) {
  constexpr int64_t kWords = 64;
  uint64_t sums[kWords] = {};
  for (int64_t i = 0; i + kWords <= count; i += kWords) {
    for (int64_t k = 0; k < kWords; ++k) sums[k] += words[i + k];
  }
  uint64_t sum = 0;
  for (const uint64_t part : sums) sum += part;
  return sum;
}

}  // namespace

double measure_read_speed(int64_t bytes, double seconds) {
  constexpr int64_t kPiece = 1 << 16;  // words that a thread takes at a time
  const int64_t words = std::max<int64_t>(kPiece, bytes / 8);
  const Tensor memory = at::ones({words}, at::kLong);
  const auto* data = reinterpret_cast<const uint64_t*>(memory.const_data_ptr<int64_t>());
  std::atomic<uint64_t> total = 0;  // keeps the reads from being left out
  const double start = Throughput::steady_seconds();
  double best = 0;
  for (int64_t run = 0; run < 3 || Throughput::steady_seconds() - start < seconds; ++run) {
    const double before = Throughput::steady_seconds();
    at::parallel_for(0, words, kPiece,
                     [&](int64_t begin, int64_t end) { total += sum_of_words(data + begin, end - begin); });
    best = std::max(best, static_cast<double>(words * 8) / (Throughput::steady_seconds() - before));
  }
  TORCH_INTERNAL_ASSERT(total > 0);
  return best;
}

double measure_matrix_speed(at::Device device, at::ScalarType dtype, double seconds) {
  const c10::NoGradGuard no_grad;
  const int64_t size = device.is_cuda() ? 8192 : 1024;
  const auto options = at::TensorOptions(dtype).device(device);
  const Tensor a = at::ones({size, size}, options), b = at::ones({size, size}, options);
  Tensor out = at::empty({size, size}, options);
  const double flops = 2.0 * static_cast<double>(size) * static_cast<double>(size) * static_cast<double>(size);
  const double start = Throughput::steady_seconds();
  double best = 0;
  for (int64_t run = 0; run < 3 || Throughput::steady_seconds() - start < seconds; ++run) {
    const double before = Throughput::steady_seconds();
    at::mm_out(out, a, b);
    out[0][0].item<float>();  // waits for a GPU
    best = std::max(best, flops / (Throughput::steady_seconds() - before));
  }
  return best;
}

}  // namespace dalle::training

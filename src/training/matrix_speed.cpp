#include "dalle/training/matrix_speed.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>

#include "dalle/training/metrics.h"

namespace dalle::training {

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

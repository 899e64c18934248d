#include "dalle/core/tensor_memory.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace dalle {
namespace {

TEST(TensorMemory, ThePeakIsWhatWasAliveAtOnce) {
  const at::Tensor before = at::zeros({1000});
  const int64_t peak = peak_tensor_bytes([&] {
    { const at::Tensor a = at::zeros({1 << 20}), b = at::zeros({1 << 20}); }
    const at::Tensor c = at::zeros({1 << 20});
  });
  EXPECT_EQ(peak, 8 << 20);
}

TEST(TensorMemory, CountsWhatABackwardPassAllocates) {
  at::Tensor x = at::ones({1 << 20}).requires_grad_();
  const int64_t forward = peak_tensor_bytes([&] { const at::Tensor y = (x * 2).sum(); });
  at::Tensor z = at::ones({1 << 20}).requires_grad_();
  const int64_t both = peak_tensor_bytes([&] { (z * 2).sum().backward(); });
  EXPECT_GE(forward, 4 << 20);
  EXPECT_GE(both, 8 << 20);  // the product, or the expanded gradient, and the gradient
}

TEST(TensorMemory, ReusedMemoryCountsOnce) {
  const int64_t peak = peak_tensor_bytes([] {
    for (int i = 0; i < 5; ++i) at::zeros({1 << 20});
  });
  EXPECT_EQ(peak, 4 << 20);
}

}  // namespace
}  // namespace dalle

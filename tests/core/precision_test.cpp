#include "dalle/core/precision.h"

#include <gtest/gtest.h>

#include "dalle/core/device.h"
#include "dalle/core/error.h"

namespace dalle {
namespace {

TEST(Precision, NamesAreThoseOfTheConfig) {
  for (const auto& [precision, name] : {std::pair{Precision::kAuto, "auto"},
                                        {Precision::kF32, "f32"},
                                        {Precision::kBf16, "bf16"},
                                        {Precision::kFp16, "fp16"}}) {
    EXPECT_EQ(enum_name(precision), name);
  }
}

TEST(Precision, ComputeTypesOnCpuAndGpu) {
  const at::Device gpu(at::kCUDA, 0);
  for (const at::Device device : {at::Device(at::kCPU), gpu}) {
    EXPECT_EQ(compute_dtype(Precision::kF32, device), at::kFloat);
    EXPECT_EQ(compute_dtype(Precision::kBf16, device), at::kBFloat16);
  }
  EXPECT_EQ(compute_dtype(Precision::kFp16, gpu), at::kHalf);
  EXPECT_EQ(compute_dtype(Precision::kAuto, gpu), at::kBFloat16);
  EXPECT_EQ(compute_dtype(Precision::kAuto, at::kCPU), cpu_has_bf16() ? at::kBFloat16 : at::kFloat);
  EXPECT_THROW(compute_dtype(Precision::kFp16, at::kCPU), ConfigError);
}

}  // namespace
}  // namespace dalle

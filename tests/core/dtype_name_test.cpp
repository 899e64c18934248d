#include "dalle/core/dtype_name.h"

#include <gtest/gtest.h>

#include "dalle/core/precision.h"

namespace dalle {
namespace {

TEST(DtypeName, IsTheConfigsNameOfAPrecision) {
  for (const auto precision : {Precision::kF32, Precision::kBf16, Precision::kF64}) {
    EXPECT_EQ(dtype_name(compute_dtype(precision, at::kCPU)), enum_name(precision));
  }
  EXPECT_EQ(dtype_name(at::kHalf), enum_name(Precision::kFp16));
  EXPECT_EQ(dtype_name(at::kLong), "Long");
}

}  // namespace
}  // namespace dalle

#include "dalle/training/matrix_speed.h"

#include <gtest/gtest.h>

#include "dalle/training/metrics.h"

namespace dalle::training {
namespace {

TEST(MatrixSpeed, IsThatOfAMachineAndDoesNotTakeLong) {
  const double start = Throughput::steady_seconds();
  const double speed = measure_matrix_speed(at::kCPU, at::kFloat, 0.1);
  EXPECT_GT(speed, 1e8) << "a core does more than 0.1 GFLOP/s";
  EXPECT_LT(speed, 1e14) << "no CPU does 100 TFLOP/s in f32";
  EXPECT_LT(Throughput::steady_seconds() - start, 60);
}

TEST(ReadSpeed, IsThatOfAMachineAndDoesNotTakeLong) {
  const double start = Throughput::steady_seconds();
  const double speed = measure_read_speed(int64_t{1} << 20, 0.1);
  EXPECT_GT(speed, 1e8) << "a core reads more than 0.1 GB/s";
  EXPECT_LT(speed, 1e13) << "no CPU reads 10 TB/s";
  EXPECT_LT(Throughput::steady_seconds() - start, 60);
}

}  // namespace
}  // namespace dalle::training

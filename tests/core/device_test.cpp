#include "dalle/core/device.h"

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dalle/core/error.h"

namespace dalle {
namespace {

using ::testing::HasSubstr;

std::string refusal(const std::string& name) {
  try {
    select_device(name);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "accepted";
}

TEST(Device, CpuAndAutoExistEverywhere) {
  EXPECT_EQ(select_device("cpu"), at::Device(at::kCPU));
  const at::Device chosen = select_device("auto");
  EXPECT_TRUE(chosen.is_cpu() || chosen == at::Device(at::kCUDA, 0));
}

TEST(Device, OtherNamesAreConfigErrorsThatSayWhatIsKnown) {
  for (const char* name : {"", "gpu", "CPU", "cpu:0", "cudas", "0", "meta"}) {
    EXPECT_THAT(refusal(name), HasSubstr("auto, cpu, cuda or cuda:INDEX")) << name;
  }
}

TEST(Device, BadCudaIndicesAreConfigErrors) {
  for (const char* name : {"cuda:", "cuda:x", "cuda:-1", "cuda:1x", "cuda:4096", "cuda:99999999999999999999"}) {
    EXPECT_THAT(refusal(name), HasSubstr("--device")) << name;
  }
  if (!at::hasCUDA()) {
    EXPECT_THAT(refusal("cuda"), HasSubstr("no CUDA"));
  }
}

TEST(Device, TensorsReachTheDevice) {
  const Tensor host = at::arange(6, at::kLong).view({2, 3}).t();
  EXPECT_TRUE(to_device(host, at::kCPU).is_same(host)) << "no copy where none is needed";
  if (!at::hasCUDA()) return;
  const Tensor moved = to_device(host, at::Device(at::kCUDA, 0));
  EXPECT_TRUE(moved.is_cuda());
  EXPECT_TRUE(at::equal(moved.cpu(), host));
}

TEST(Device, ThreadsAreSetAndZeroKeepsThem) {
  const int before = at::get_num_threads();
  set_num_threads(2);
  EXPECT_EQ(at::get_num_threads(), 2);
  EXPECT_THAT(describe_device(at::kCPU), HasSubstr("cpu, 2 threads"));
  set_num_threads(0);
  EXPECT_EQ(at::get_num_threads(), 2);
  set_num_threads(1);
  EXPECT_THAT(describe_device(at::kCPU), HasSubstr("cpu, 1 thread of"));
  set_num_threads(before);
}

TEST(Device, AmxImpliesBf16) { EXPECT_TRUE(!cpu_has_amx() || cpu_has_bf16()); }

}  // namespace
}  // namespace dalle

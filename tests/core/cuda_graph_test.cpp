// Work recorded on a GPU runs again on what its tensors hold by then.
#include "dalle/core/cuda_graph.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <stdexcept>

#include "dalle/core/error.h"

namespace dalle {
namespace {

TEST(CudaGraph, ABuildOrMachineWithoutAGpuRefuses) {
  if (at::hasCUDA()) GTEST_SKIP() << "there is a GPU";
  EXPECT_ANY_THROW(record_cuda_graph(at::Device(at::kCUDA, 0), [] {}));
}

TEST(CudaGraph, ReplaysReadAndWriteTheSameTensors) {
  if (!at::hasCUDA()) GTEST_SKIP() << "no GPU";
  const at::Device gpu(at::kCUDA, 0);
  const Tensor in = at::ones({4}, at::TensorOptions(at::kFloat).device(gpu));
  Tensor out;
  const auto graph = record_cuda_graph(gpu, [&] { out = in * 2 + 1; });
  for (const float value : {5.0f, -3.0f}) {
    in.fill_(value);
    graph->replay();
    EXPECT_TRUE(at::equal(out.cpu(), at::full({4}, 2 * value + 1)));
  }
}

TEST(CudaGraph, WhatWorkThrowsIsPassedOnAndLeavesTheGpuUsable) {
  if (!at::hasCUDA()) GTEST_SKIP() << "no GPU";
  const at::Device gpu(at::kCUDA, 0);
  int calls = 0;
  const auto fails_when_recorded = [&] {
    if (++calls == 2) throw std::runtime_error("no");
  };
  EXPECT_THROW(record_cuda_graph(gpu, fails_when_recorded), std::runtime_error);
  EXPECT_EQ(calls, 2);
  EXPECT_EQ(at::ones({3}, at::TensorOptions(at::kFloat).device(gpu)).sum().item<float>(), 3);
}

}  // namespace
}  // namespace dalle

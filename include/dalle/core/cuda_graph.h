// A sequence of GPU kernels recorded once and launched as one (CUDA graphs). Chosen by CMake: cuda_graph.cpp, or a stub in
// builds without CUDA.
#pragma once

#include <functional>
#include <memory>

#include "dalle/core/tensor.h"

namespace dalle {

class CudaGraph {
 public:
  virtual ~CudaGraph() = default;
  /// Queues the recorded kernels on the current stream, without waiting for them. They read and write the tensors that they
  /// were recorded with.
  virtual void replay() = 0;
};

/// Runs `work` on a stream of its own, once for what is made on first use, then records it without running it. Tensors that
/// it makes live as long as the graph, and every replay writes the same ones. `work` may not wait for the GPU, nor depend on
/// values on the host that change. What it throws (c10::OutOfMemoryError as well) is passed on and leaves nothing recorded.
/// Throws ConfigError in builds without CUDA.
std::unique_ptr<CudaGraph> record_cuda_graph(at::Device device, const std::function<void()>& work);

}  // namespace dalle

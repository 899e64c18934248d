#include "dalle/core/cuda_graph.h"

#include <ATen/cuda/CUDAGraph.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

namespace dalle {
namespace {

class RecordedGraph : public CudaGraph {
 public:
  RecordedGraph(at::Device device, const std::function<void()>& work) : device_(device) {
    const c10::cuda::CUDAGuard device_guard(device);
    c10::cuda::getCurrentCUDAStream().synchronize();  // what `work` reads may still be under way there
    const c10::cuda::CUDAStream own = c10::cuda::getStreamFromPool(/*isHighPriority=*/false, device.index());
    const c10::cuda::CUDAStreamGuard stream_guard(own);
    work();
    own.synchronize();
    graph_.capture_begin();
    try {
      work();
    } catch (...) {
      end_failed_capture();
      throw;
    }
    graph_.capture_end();
  }

  void replay() override {
    const c10::cuda::CUDAGuard device_guard(device_);
    graph_.replay();
  }

 private:
  // A stream that is left recording would refuse all work. That the recording has failed is known already.
  void end_failed_capture() noexcept {
    try {
      graph_.capture_end();
    } catch (const std::exception&) {
    }
  }

  at::Device device_;
  at::cuda::CUDAGraph graph_;
};

}  // namespace

std::unique_ptr<CudaGraph> record_cuda_graph(at::Device device, const std::function<void()>& work) {
  return std::make_unique<RecordedGraph>(device, work);
}

}  // namespace dalle

#include "dalle/core/cuda_graph.h"
#include "dalle/core/error.h"

namespace dalle {

std::unique_ptr<CudaGraph> record_cuda_graph(at::Device /*device*/, const std::function<void()>& /*work*/) {
  throw ConfigError(Problem{"device", "a build with CUDA to record a CUDA graph", "this program was built without CUDA",
                            "configure with --preset cuda, or use --device cpu"});
}

}  // namespace dalle

#include "dalle/core/error.h"
#include "dalle/core/random_cuda.h"

namespace dalle::detail {

void uniform_rows_cuda(const Tensor& /*keys*/, Tensor& /*out*/, int64_t /*offset*/) {
  throw ConfigError(Problem{"device", "a build with CUDA for tensors on a CUDA device",
                            "this program was built without CUDA",
                            "configure with --preset cuda, or use --device cpu"});
}

}  // namespace dalle::detail

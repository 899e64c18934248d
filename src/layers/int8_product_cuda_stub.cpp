#include "dalle/core/error.h"
#include "int8_product_cuda.h"

namespace dalle::layers::detail {

void int8_product_cuda(const Tensor&, const Tensor&, const Tensor&, Tensor&) {
  throw ConfigError(Problem{"int8 weights", "a build with CUDA", "one without", "build with the preset cuda"});
}

}  // namespace dalle::layers::detail

#include "dalle/core/error.h"
#include "dalle/layers/relaxation_kernels.h"

namespace dalle::layers::detail {
namespace {
[[noreturn]] void refuse() {
  throw ConfigError(Problem{"relax", "a build with CUDA", "one without", "build with the preset cuda"});
}
}  // namespace

RelaxationRows relax_rows_cuda(const Tensor&, const Tensor&, double, bool) { refuse(); }
void relax_rows_backward_cuda(const Tensor&, const Tensor&, const Tensor&, const Tensor&, const RowStatistics&, double,
                              const Tensor&) {
  refuse();
}

}  // namespace dalle::layers::detail

#include "dalle/core/precision.h"

#include "dalle/core/device.h"
#include "dalle/core/error.h"

namespace dalle {

at::ScalarType compute_dtype(Precision precision, at::Device device) {
  switch (precision) {
    case Precision::kAuto:
      return device.is_cuda() || cpu_has_bf16() ? at::kBFloat16 : at::kFloat;
    case Precision::kF32:
      return at::kFloat;
    case Precision::kBf16:
      return at::kBFloat16;
    case Precision::kF64:
      return at::kDouble;
    case Precision::kFp16:
      break;
  }
  if (device.is_cpu()) {
    throw ConfigError(Problem{"precision", "auto, f32 or bf16 on a CPU", "fp16", "fp16 needs a GPU"});
  }
  return at::kHalf;
}

}  // namespace dalle

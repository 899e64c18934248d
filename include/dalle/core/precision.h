// Which number format matrix work is done in. Losses, softmax over vocabularies, layer-norm statistics, KL and optimizer
// state are always f32; "bf16" means bf16 operands with f32 accumulation, over f32 master weights. "f64" is for checks of
// exactness: there weights, moments and everything else are f64, and nothing is fast.
#pragma once

#include "dalle/core/enum_names.h"
#include "dalle/core/tensor.h"

namespace dalle {

enum class Precision { kAuto, kF32, kBf16, kFp16, kF64 };

template <>
struct EnumNames<Precision> {
  static constexpr EnumName<Precision> values[] = {{Precision::kAuto, "auto"},
                                                   {Precision::kF32, "f32"},
                                                   {Precision::kBf16, "bf16"},
                                                   {Precision::kFp16, "fp16"},
                                                   {Precision::kF64, "f64"}};
};

/// The compute type: auto is bf16 where `device` multiplies it natively, else f32. Throws ConfigError for fp16 on a CPU
/// (training a prior takes it there too: training/prior_task.h).
at::ScalarType compute_dtype(Precision precision, at::Device device);

}  // namespace dalle

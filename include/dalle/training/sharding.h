// What devices of a run split among themselves.
#pragma once

#include "dalle/core/enum_names.h"

namespace dalle::training {

/// What devices split: nothing; moments and averages; weights and gradients as well over all; the same within a machine,
/// with a replica in each.
enum class Sharding { kNone, kOptimizer, kFull, kHybrid };

}  // namespace dalle::training

template <>
struct dalle::EnumNames<dalle::training::Sharding> {
  static constexpr EnumName<training::Sharding> values[] = {{training::Sharding::kNone, "none"},
                                                            {training::Sharding::kOptimizer, "optimizer"},
                                                            {training::Sharding::kFull, "full"},
                                                            {training::Sharding::kHybrid, "hybrid"}};
};

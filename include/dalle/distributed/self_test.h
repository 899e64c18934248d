// The first thing ranks do together: each collective on numbers whose result is known, timed.
#pragma once

#include <string>
#include <vector>

#include "dalle/distributed/communicator.h"

namespace dalle::distributed {

/// Runs all-reduce, all-gather and reduce-scatter over 4 MiB of f32 on `device`, best of three, and checks what comes out.
/// One line for each: "all-reduce of 4.0 MiB over 2 ranks: 3.1 ms, 1.3 GB/s" (bytes of the whole over time), with bus
/// bandwidth as NCCL's tests define it, which can be compared with the wire's. No lines for one rank. Throws Error where a
/// result is wrong.
std::vector<std::string> self_test(Communicator& communicator, at::Device device);

}  // namespace dalle::distributed

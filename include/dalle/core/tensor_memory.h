// How many bytes tensors take while something runs, counted at LibTorch's allocator: exact, and the same on every machine.
#pragma once

#include <cstdint>
#include <functional>

namespace dalle {

/// Peak of tensor bytes allocated (and not yet freed) by the calling thread and its backward passes during `work`, above
/// what stood when it began. Counts tensors of all devices.
int64_t peak_tensor_bytes(const std::function<void()>& work);

}  // namespace dalle

// Work on many candidates, so many at a time as fit into memory.
#pragma once

#include <cstdint>
#include <functional>
#include <span>

namespace dalle::generation {

/// Calls `work` for stretches of at most `batch_size` of the numbers, in order. After a device's out-of-memory error
/// (c10::OutOfMemoryError) the stretch is tried again at half the size, and the rest goes on at that; the error passes on
/// where a single one does not fit. Returns the batch size it ended with.
int64_t in_batches(std::span<const int64_t> numbers, int64_t batch_size,
                   const std::function<void(std::span<const int64_t>)>& work);

}  // namespace dalle::generation

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

/// What work on many candidates takes of memory that others use too.
struct BatchMemory {
  int64_t available = 0;  // bytes that are free
  int64_t fixed = 0;      // bytes at any batch size
  int64_t each = 1;       // bytes of a candidate
  int num_processes = 1;  // that do the same with the same memory
};
/// Candidates at a time that take half of what is free: 1 .. most.
int64_t batch_that_fits(const BatchMemory& memory, int64_t most);

}  // namespace dalle::generation

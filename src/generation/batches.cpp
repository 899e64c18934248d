#include "dalle/generation/batches.h"

#include <c10/util/Exception.h>

#include <algorithm>

#include "dalle/core/logging.h"
#include "dalle/core/str.h"

namespace dalle::generation {

int64_t in_batches(std::span<const int64_t> numbers, int64_t batch_size,
                   const std::function<void(std::span<const int64_t>)>& work) {
  TORCH_CHECK_VALUE(batch_size >= 1, "[batches] expected a batch size >= 1, got ", batch_size);
  while (!numbers.empty()) {
    const auto batch = numbers.first(std::min(numbers.size(), static_cast<size_t>(batch_size)));
    const auto count = static_cast<int64_t>(batch.size());
    try {
      work(batch);
    } catch (const c10::OutOfMemoryError&) {
      if (count == 1) throw;
      batch_size = count / 2;
      log_warning(str("out of the device's memory with ", count, " at a time; going on with ", batch_size));
      continue;
    }
    numbers = numbers.subspan(batch.size());
  }
  return batch_size;
}

int64_t batch_that_fits(const BatchMemory& memory, int64_t most) {
  return std::clamp<int64_t>((memory.available / (2 * memory.num_processes) - memory.fixed) / memory.each, 1, most);
}

}  // namespace dalle::generation

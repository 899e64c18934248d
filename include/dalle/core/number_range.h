// Stretches of neighbouring numbers, of a tensor or of a file's.
#pragma once

#include <cstdint>
#include <vector>

namespace dalle {

/// Numbers [begin, end).
struct NumberRange {
  int64_t begin = 0, end = 0;

  int64_t size() const { return end - begin; }
  bool operator==(const NumberRange&) const = default;
};

inline int64_t total_size(const std::vector<NumberRange>& ranges) {
  int64_t size = 0;
  for (const auto& range : ranges) size += range.size();
  return size;
}

}  // namespace dalle

#include "dalle/core/number_text.h"

#include <cmath>
#include <cstdio>

namespace dalle {

std::string grouped_digits(int64_t number) {
  std::string text = std::to_string(number);
  const int64_t first = number < 0 ? 1 : 0;
  for (auto at = static_cast<int64_t>(text.size()) - 3; at > first; at -= 3) {
    text.insert(static_cast<size_t>(at), ",");
  }
  return text;
}

std::string scaled(double value, const std::string& unit) {
  const char* prefixes[] = {"", "k", "M", "G", "T", "P", "E", "Z", "Y"};
  size_t index = 0;
  while (std::abs(value) >= 999.5 && index + 1 < std::size(prefixes)) {
    value /= 1000;
    ++index;
  }
  char text[64];
  const bool whole = index == 0 && value == std::floor(value);
  const int decimals = whole || std::abs(value) >= 99.95 ? 0 : std::abs(value) >= 9.995 ? 1 : 2;
  std::snprintf(text, sizeof text, "%.*f ", decimals, value);
  return text + std::string(prefixes[index]) + unit;
}

}  // namespace dalle

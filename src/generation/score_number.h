// Private to what writes scores: a number in JSON, which has none that are not finite.
#pragma once

#include <cmath>
#include <nlohmann/json.hpp>

namespace dalle::generation {

inline nlohmann::ordered_json score_number(double value) {
  if (std::isfinite(value)) return value;
  return std::isnan(value) ? "nan" : value > 0 ? "inf" : "-inf";
}

}  // namespace dalle::generation

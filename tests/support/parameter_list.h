// Parameter names and shapes of a model as text, compared with the lists in tests/golden/*.txt.
#pragma once

#include <algorithm>
#include <sstream>
#include <string>
#include <vector>

#include "dalle/layers/module.h"
#include "support/golden.h"

namespace dalle::testing {

/// "name d0 d1 ..." per parameter, sorted.
inline std::vector<std::string> parameter_list(const layers::Module& module) {
  std::vector<std::string> lines;
  for (const auto& [name, parameter] : module.named_parameters()) {
    std::string line = name;
    for (const int64_t size : parameter->tensor.sizes()) line += str(" ", size);
    lines.push_back(line);
  }
  std::sort(lines.begin(), lines.end());
  return lines;
}

/// The lines of a committed list, sorted.
inline std::vector<std::string> golden_parameter_list(const std::string& file) {
  std::istringstream in(read_file(golden_path(file)));
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  std::sort(lines.begin(), lines.end());
  return lines;
}

}  // namespace dalle::testing

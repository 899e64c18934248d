// The numbers of a run, and runs that should have the same.
#pragma once

#include <algorithm>
#include <cmath>
#include <map>
#include <sstream>
#include <string>
#include <vector>

#include <ATen/ATen.h>

#include "dalle/storage/checkpoint.h"
#include "integration/ranks.h"

namespace dalle::integration {

/// Values of one phase that do not depend on the clock, line by line.
inline std::vector<std::map<std::string, double>> values_of(const fs::path& run, const std::string& phase) {
  std::istringstream text(read_file(run / "metrics.jsonl"));
  std::vector<std::map<std::string, double>> lines;
  for (std::string line; std::getline(text, line);) {
    const auto entry = nlohmann::json::parse(line);
    if (entry["phase"] != phase) continue;
    auto& values = lines.emplace_back();
    for (const auto& [name, value] : entry.items()) {
      const bool is_of_clock =
          name == "time" || name == "mfu" || name.ends_with("_share") || name.ends_with("_per_second");
      if (value.is_number() && !is_of_clock) values[name] = value.get<double>();
    }
  }
  return lines;
}

/// Every value of every line, relative to its size where that is above 1e-3. Numbers of pictures that an argmax decides
/// (retrieval, codes) are equal too.
inline void expect_same_values(const fs::path& actual, const fs::path& expected, const std::string& phase,
                               double tolerance) {
  const auto lines = values_of(actual, phase), wanted = values_of(expected, phase);
  ASSERT_EQ(lines.size(), wanted.size()) << actual;
  ASSERT_FALSE(wanted.empty());
  for (size_t i = 0; i < wanted.size(); ++i) {
    ASSERT_EQ(lines[i].size(), wanted[i].size()) << actual << " line " << i;
    for (const auto& [name, value] : wanted[i]) {
      ASSERT_TRUE(lines[i].contains(name)) << name;
      EXPECT_NEAR(lines[i].at(name), value, tolerance * std::max(1e-3, std::abs(value)))
          << actual << " " << phase << " line " << i << " " << name;
    }
  }
}

inline void expect_same_losses(const fs::path& actual, const fs::path& expected, double tolerance) {
  const auto lines = values_of(actual, "train"), wanted = values_of(expected, "train");
  ASSERT_EQ(lines.size(), wanted.size()) << actual;
  for (size_t i = 0; i < wanted.size(); ++i) {
    const double loss = wanted[i].at("loss");
    EXPECT_EQ(lines[i].at("step"), wanted[i].at("step"));
    EXPECT_NEAR(lines[i].at("loss"), loss, tolerance * std::max(0.1, std::abs(loss))) << actual << " step " << i + 1;
  }
}

/// Largest difference of two checkpoints' numbers, and that they have the same tensors.
inline double largest_difference(const std::vector<storage::NamedTensor>& some,
                                 const std::vector<storage::NamedTensor>& others) {
  EXPECT_EQ(some.size(), others.size());
  double largest = 0;
  for (const auto& [name, tensor] : some) {
    const Tensor* other = storage::find_tensor(others, name);
    if (other == nullptr || other->sizes() != tensor.sizes()) {
      ADD_FAILURE() << name;
      continue;
    }
    largest = std::max(largest, (tensor - *other).to(at::kDouble).abs().max().item<double>());
  }
  return largest;
}

}  // namespace dalle::integration

// Tiny priors in fp16, shared by this layer's tests.
#pragma once

#include <algorithm>
#include <cmath>

#include "training/tiny_runs.h"

namespace dalle::training {

inline PriorTraining prior_in(Precision precision, int64_t num_steps) {
  auto config = tiny_prior(num_steps);
  config.precision = precision;
  config.preview_captions = 0;
  return config;
}

/// Of values at the same places.
inline double largest_relative_difference(const std::vector<double>& some, const std::vector<double>& others) {
  EXPECT_EQ(some.size(), others.size());
  double largest = 0;
  for (size_t i = 0; i < some.size(); ++i) largest = std::max(largest, std::abs(some[i] / others[i] - 1));
  return largest;
}

/// A tensor of a checkpoint's optimizer part.
inline const Tensor& optimizer_tensor(const storage::Checkpoint& checkpoint, const std::string& name) {
  const Tensor* tensor = storage::find_tensor(checkpoint.optimizer, name);
  TORCH_CHECK(tensor != nullptr, name);
  return *tensor;
}

}  // namespace dalle::training

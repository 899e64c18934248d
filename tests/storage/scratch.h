// What the storage tests share: checkpoints to compare, file damage.
#pragma once

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <functional>
#include <string>

#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "dalle/core/random.h"
#include "dalle/core/str.h"
#include "dalle/storage/checkpoint.h"
#include "support/random_tensor.h"
#include "support/temp_directory.h"
#include "support/tensor_matchers.h"
#include "support/thrown_message.h"

namespace dalle::storage {

namespace fs = std::filesystem;

using testing::message_of;
using testing::random_tensor;
using Scratch = testing::TempDirectory;

inline void expect_same(const std::vector<NamedTensor>& got, const std::vector<NamedTensor>& expected) {
  ASSERT_EQ(got.size(), expected.size());
  for (size_t i = 0; i < got.size(); ++i) {
    EXPECT_EQ(got[i].name, expected[i].name);
    EXPECT_TRUE(testing::bitwise_equal(got[i].tensor, expected[i].tensor)) << expected[i].name;
  }
}

/// Overwrites a file in place, as damage does. Many times in a row, so it must not wait for the disk, as some file
/// systems do where a file was truncated first.
inline void overwrite(const fs::path& path, const std::string& content) {
  std::ofstream(path, std::ios::app).close();  // makes it where it is missing
  (std::fstream(path, std::ios::in | std::ios::out | std::ios::binary) << content).flush();
  fs::resize_file(path, content.size());
}

inline Checkpoint sample_checkpoint(int64_t step = 7) {
  Checkpoint checkpoint;
  checkpoint.kind = "prior";
  checkpoint.config_yaml = "name: \"demo\"\ntrainer:\n  seed: 3\n";
  checkpoint.model_config_yaml = "dim: 8\n";
  checkpoint.step = step;
  checkpoint.samples_seen = 16 * step;
  checkpoint.model = {{"a.weight", random_tensor(step, {3, 4})}, {"a.bias", random_tensor(step + 1, {3})}};
  checkpoint.ema = {{"a.weight", random_tensor(step + 2, {3, 4})}, {"a.bias", random_tensor(step + 3, {3})}};
  checkpoint.optimizer = {{"steps", at::tensor({step}, at::kLong)}, {"a.bias.exp_avg", random_tensor(step + 4, {3})}};
  checkpoint.tokenizer = std::string("\x00\x0a\xff piece\n", 10);
  checkpoint.identities = {{"model", "00ff"}, {"dvae", "1234"}};
  checkpoint.scalars = {{"loss", 0.1}, {"best", 1e-300}, {"unknown", NAN}, {"low", -INFINITY}};
  return checkpoint;
}

inline void expect_same(const Checkpoint& got, const Checkpoint& expected) {
  EXPECT_EQ(got.kind, expected.kind);
  EXPECT_EQ(got.config_yaml, expected.config_yaml);
  EXPECT_EQ(got.model_config_yaml, expected.model_config_yaml);
  EXPECT_EQ(got.step, expected.step);
  EXPECT_EQ(got.samples_seen, expected.samples_seen);
  EXPECT_EQ(got.tokenizer, expected.tokenizer);
  EXPECT_EQ(got.identities, expected.identities);
  ASSERT_EQ(got.scalars.size(), expected.scalars.size());
  for (const auto& [name, value] : expected.scalars) {
    const double other = got.scalars.at(name);
    EXPECT_TRUE(other == value || (std::isnan(other) && std::isnan(value))) << name;
  }
}

}  // namespace dalle::storage

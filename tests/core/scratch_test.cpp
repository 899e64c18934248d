#include "dalle/core/scratch.h"

#include <gtest/gtest.h>

#include <vector>

namespace dalle {
namespace {

TEST(Scratch, BeginsAtACacheLine) {
  std::vector<Scratch<uint16_t>> many;  // of sizes after which an ordinary allocation would begin anywhere
  for (int64_t size = 1; size < 200; size += 7) {
    many.push_back(scratch<uint16_t>(size));
    EXPECT_EQ(reinterpret_cast<uintptr_t>(many.back().get()) % 64, 0U) << size;
    for (int64_t i = 0; i < size; ++i) many.back()[static_cast<size_t>(i)] = uint16_t{1};
  }
}

}  // namespace
}  // namespace dalle

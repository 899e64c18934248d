#include "dalle/core/str.h"

#include <gtest/gtest.h>

#include "dalle/core/tensor.h"

namespace dalle {
namespace {

TEST(Str, JoinsEverythingThatCanBePrinted) {
  EXPECT_EQ(str("step ", 3, '/', int64_t{10}, " loss ", 0.5, " ", true), "step 3/10 loss 0.5 1");
  EXPECT_EQ(dalle::str("shape ", at::IntArrayRef({2, 3})), "shape [2, 3]");
  EXPECT_EQ(str(std::string("a"), std::string_view("b")), "ab");
}

}  // namespace
}  // namespace dalle

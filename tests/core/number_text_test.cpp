#include "dalle/core/number_text.h"

#include <gtest/gtest.h>

namespace dalle {
namespace {

TEST(NumberText, GroupsDigitsByThrees) {
  EXPECT_EQ(grouped_digits(0), "0");
  EXPECT_EQ(grouped_digits(999), "999");
  EXPECT_EQ(grouped_digits(1000), "1,000");
  EXPECT_EQ(grouped_digits(-123456), "-123,456");
  EXPECT_EQ(grouped_digits(12'292'840'960), "12,292,840,960");
}

TEST(NumberText, ScalesToThreeDigits) {
  EXPECT_EQ(scaled(0, "B"), "0 B");
  EXPECT_EQ(scaled(97, "FLOP"), "97 FLOP");
  EXPECT_EQ(scaled(0.5, "s"), "0.50 s");
  EXPECT_EQ(scaled(1500, "B"), "1.50 kB");
  EXPECT_EQ(scaled(1.95e9, "B"), "1.95 GB");
  EXPECT_EQ(scaled(99.96e9, "B"), "100 GB");
  EXPECT_EQ(scaled(999.6e6, "B"), "1.00 GB");
  EXPECT_EQ(scaled(4.1e22, "FLOP"), "41.0 ZFLOP");
}

}  // namespace
}  // namespace dalle

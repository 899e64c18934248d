// Words of pairs: frozen values, and that each bit of a column reaches each bit of the word.
#include "dalle/core/pair_words.h"

#include <gtest/gtest.h>

namespace dalle {
namespace {

// Part of the reproducibility contract: runs that resume need the same words for ever.
TEST(PairWord, StaysWhatItIs) {
  const PairRow row = pair_row(random_key(3, Purpose::kDropout, 1, 2), 4);
  EXPECT_EQ(mix_word(1), 0x688990C0u);
  EXPECT_EQ(pair_word(row, 0), 0xE54E4016u);
  EXPECT_EQ(pair_word(row, 1), 0x3FCE2539u);
}

// Each bit of a word is set half of the time and flips half of the time when one bit of the column does.
TEST(PairWord, EveryBitDependsOnEveryBitOfTheColumn) {
  constexpr uint32_t kDraws = 1 << 12;
  for (int flipped = 0; flipped < 16; ++flipped) {
    int set[32] = {}, changed[32] = {};
    for (uint32_t i = 0; i < kDraws; ++i) {
      const PairRow row = pair_row(random_key(1, Purpose::kDropout), i);  // each pair drawn once
      const uint32_t a = pair_word(row, i % 64), b = pair_word(row, i % 64 ^ 1u << flipped);
      for (int bit = 0; bit < 32; ++bit) {
        set[bit] += static_cast<int>(a >> bit & 1);
        changed[bit] += static_cast<int>((a ^ b) >> bit & 1);
      }
    }
    for (int bit = 0; bit < 32; ++bit) {
      EXPECT_NEAR(set[bit], kDraws / 2, 5 * 32) << bit;  // five standard deviations
      EXPECT_NEAR(changed[bit], kDraws / 2, 5 * 32) << flipped << " " << bit;
    }
  }
}

}  // namespace
}  // namespace dalle

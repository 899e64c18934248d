#include "dalle/training/token_cache.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace dalle::training {
namespace {

const std::vector<int64_t> kOneAndFour{1, 4}, kFourAlone{4}, kFourAndTwo{4, 2};

TEST(TokenCache, FindsWhatWasPutAndNothingElse) {
  for (const int64_t vocab : {8192, 40'000}) {
    TokenCache cache(6, 3, vocab, at::kCPU);
    EXPECT_FALSE(cache.find(kFourAlone).defined());
    const Tensor tokens = at::tensor({0, 7, static_cast<int>(vocab) - 1, 5, 6, 8}, at::kLong).view({2, 3});
    cache.put(kOneAndFour, tokens);
    EXPECT_TRUE(at::equal(cache.find(kOneAndFour), tokens));
    EXPECT_TRUE(at::equal(cache.find(kFourAlone), tokens.slice(0, 1)));
    EXPECT_FALSE(cache.find(kFourAndTwo).defined()) << "one of them is not known";
  }
}

TEST(TokenCache, HoldsNothingAboveItsLimit) {
  TokenCache cache(6, 3, 8192, at::kCPU, /*limit_bytes=*/35);  // 36 would do
  EXPECT_FALSE(cache.holds_any());
  cache.put(kOneAndFour, at::zeros({2, 3}, at::kLong));
  EXPECT_FALSE(cache.find(kOneAndFour).defined());
  EXPECT_TRUE(TokenCache(6, 3, 8192, at::kCPU, 36).holds_any());
  EXPECT_FALSE(TokenCache().find(kFourAlone).defined());
}

TEST(TokenCache, TokensOfAnotherShapeAreRefused) {
  TokenCache cache(6, 3, 8192, at::kCPU);
  EXPECT_THROW(cache.put(kOneAndFour, at::zeros({2, 4}, at::kLong)), c10::ValueError);
  EXPECT_THROW(cache.put(kOneAndFour, at::zeros({1, 3}, at::kLong)), c10::ValueError);
}

}  // namespace
}  // namespace dalle::training

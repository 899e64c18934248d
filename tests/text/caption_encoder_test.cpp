#include "dalle/text/caption_encoder.h"

#include <gtest/gtest.h>

#include "dalle/text/tokenizer_trainer.h"

namespace dalle::text {
namespace {

Tokenizer small_tokenizer() {
  return Tokenizer::from_bytes(train_tokenizer({"the cat and the dog", "the cat"}, {.vocab_size = 300}));
}

TEST(CaptionEncoder, PadsToItsLength) {
  const auto tokenizer = small_tokenizer();
  const CaptionEncoder encoder(tokenizer, 8);
  const auto encoded = encoder.encode("The Cat");
  auto expected = tokenizer.encode("the cat");
  ASSERT_LT(expected.size(), 8u);
  expected.resize(8, kPadToken);
  EXPECT_EQ(encoded.ids, expected);
  EXPECT_FALSE(encoded.truncated);
}

TEST(CaptionEncoder, CutsAndSaysSo) {
  const auto tokenizer = small_tokenizer();
  const CaptionEncoder encoder(tokenizer, 3);
  auto expected = tokenizer.encode("the cat and the dog");
  ASSERT_GT(expected.size(), 3u);
  expected.resize(3);
  const auto encoded = encoder.encode("the cat and the dog");
  EXPECT_EQ(encoded.ids, expected);
  EXPECT_TRUE(encoded.truncated);
  EXPECT_FALSE(encoder.encode("the").truncated);
}

TEST(CaptionEncoder, AnExactFitIsNotTruncated) {
  const auto tokenizer = small_tokenizer();
  const auto ids = tokenizer.encode("the cat");
  const CaptionEncoder encoder(tokenizer, static_cast<int64_t>(ids.size()));
  EXPECT_FALSE(encoder.encode("the cat").truncated);
  EXPECT_EQ(encoder.encode("the cat").ids, ids);
}

TEST(CaptionEncoder, DropoutOnlyWithAKey) {
  const auto tokenizer = small_tokenizer();
  const CaptionEncoder encoder(tokenizer, 32, 0.5);
  const auto plain = encoder.encode("the cat and the dog").ids;
  EXPECT_EQ(encoder.encode("the cat and the dog").ids, plain);
  int different = 0;
  for (uint64_t i = 0; i < 20; ++i) {
    different += encoder.encode("the cat and the dog", random_key(1, Purpose::kBpeDropout, i)).ids != plain ? 1 : 0;
  }
  EXPECT_GT(different, 10);
}

}  // namespace
}  // namespace dalle::text

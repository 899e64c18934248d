#include "dalle/core/hash.h"

#include <gtest/gtest.h>

#include <vector>

namespace dalle {
namespace {

std::string hash_of(std::string_view text) {
  Hasher hasher;
  hasher.update(text);
  return hasher.hex();
}

TEST(Hash, KnownAnswersOfXxh3) {
  EXPECT_EQ(hash_of(""), "99aa06d3014798d86001c324468d497f");  // as `xxhsum -H2` prints them
  EXPECT_EQ(hash_of("hello"), "b5e9c1ad071b3e7fc779cfaa5e523818");
}

TEST(Hash, PiecesAddUpAndBytesCount) {
  std::string text;
  for (int i = 0; i < 5000; ++i) text += static_cast<char>(i * 7);
  for (const size_t cut : {size_t{0}, size_t{1}, size_t{255}, size_t{1024}, text.size()}) {
    Hasher hasher;
    hasher.update(std::string_view(text).substr(0, cut));
    hasher.update(std::as_bytes(std::span(text)).subspan(cut));
    EXPECT_EQ(hasher.hex(), hash_of(text)) << cut;
    EXPECT_EQ(hasher.hex(), hash_of(text)) << "asking twice";
  }
  std::string other = text;
  other[4999] ^= 1;
  EXPECT_NE(hash_of(other), hash_of(text));
  EXPECT_NE(hash_of(std::string(1, '\0')), hash_of(""));
}

}  // namespace
}  // namespace dalle

#include "dalle/text/pretokenize.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dalle/core/error.h"
#include "dalle/core/random.h"

namespace dalle::text {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(NormalizeCaption, LowersLatinGreekAndCyrillic) {
  EXPECT_EQ(normalize_caption("A Cat ÄÖÉŁ"), "a cat äöéł");
  EXPECT_EQ(normalize_caption("ΌΔΟΣ ΣΑΣ Σ"), "όδος σας σ");
  EXPECT_EQ(normalize_caption("ЩУКА Ёж"), "щука ёж");
}

TEST(NormalizeCaption, CollapsesAndTrimsWhiteSpaceOfAllKinds) {
  EXPECT_EQ(normalize_caption(" \t a\r\n\n b\u00A0\u2003c\u3000 "), "a b c");
  EXPECT_EQ(normalize_caption(" \n "), "");
}

TEST(NormalizeCaption, IsIdempotentOnAnyText) {
  RandomStream stream(random_key(1, Purpose::kShuffle));
  for (int i = 0; i < 2000; ++i) {
    std::string text;
    for (int64_t n = stream.integer(0, 12); n > 0; --n) {
      const auto range = stream.integer(0, 3);
      const int64_t high = range == 0 ? 0x7F : range == 1 ? 0x5FF : range == 2 ? 0xD7FF : 0xFFFF;
      const int64_t low = range == 3 ? 0xE000 : 1;
      text += to_utf8(static_cast<char32_t>(stream.integer(low, high)));
    }
    const auto once = normalize_caption(text);
    EXPECT_EQ(normalize_caption(once), once);
  }
}

TEST(NormalizeCaption, NamesTheByteThatIsNotUtf8) {
  for (const std::string bad : {"\xFF", "\xC0\x80", "\xED\xA0\x80", "\xE2\x82", "\xF4\x90\x80\x80"}) {
    EXPECT_EQ(find_invalid_utf8("ab\u00E9" + bad), 4u);
    try {
      normalize_caption("ab\u00E9" + bad + "x");
      FAIL() << "accepted";
    } catch (const DataError& error) {
      EXPECT_THAT(error.what(), HasSubstr("byte 4"));
    }
  }
  EXPECT_EQ(find_invalid_utf8("é€😀"), std::nullopt);
}

TEST(NormalizeCaption, ReplacesInvalidBytesWhenAsked) {
  EXPECT_EQ(replace_invalid_utf8("a\xFF\xE2\x82z"), "a\uFFFD\uFFFD\uFFFDz");
}

TEST(SplitPieces, KeepsOnlyLetterRunsTogether) {
  EXPECT_THAT(split_pieces("a cat, 12:30 don't"),
              ElementsAre("a", " ", "cat", ",", " ", "1", "2", ":", "3", "0", " ", "don", "'", "t"));
  EXPECT_THAT(split_pieces("été щука2"), ElementsAre("été", " ", "щука", "2"));
  EXPECT_THAT(split_pieces(""), ElementsAre());
}

TEST(SplitPieces, MarksStayWithTheirLettersOnly) {
  EXPECT_THAT(split_pieces("e\u0301t\u0301"), ElementsAre("e\u0301t\u0301"));
  EXPECT_THAT(split_pieces("1\u0301a"), ElementsAre("1", "\u0301", "a"));
}

}  // namespace
}  // namespace dalle::text

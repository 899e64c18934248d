// Cleaning and words of CLIP's captions. tests/text/clip_bpe_test.cpp compares the whole with open_clip's ids.
#include "dalle/text/clip_caption.h"

#include <gmock/gmock.h>

#include "dalle/core/error.h"
#include "support/thrown_message.h"

namespace dalle::text {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(ClipCaption, ReferencesBecomeWhatHtmlSays) {
  EXPECT_EQ(unescape_html("t&eacute;t&#233; &#xE9;&#Xe9;"), "tété éé");
  EXPECT_EQ(unescape_html("&lt;b&gt; &amp;amp; &quot;x&quot;"), "<b> &amp; \"x\"");
  EXPECT_EQ(unescape_html("&NotEqualTilde;"), "≂̸");  // two code points
  EXPECT_EQ(unescape_html("no references at all"), "no references at all");
}

TEST(ClipCaption, WithoutASemicolonTheLongestNameCounts) {
  EXPECT_EQ(unescape_html("&copy2020 &notit; &notin;"), "©2020 ¬it; ∉");
  EXPECT_EQ(unescape_html("&alpha beta"), "&alpha beta") << "a name that HTML has with a semicolon only";
  EXPECT_EQ(unescape_html("&nosuch; & &; &"), "&nosuch; & &; &");
}

TEST(ClipCaption, NumbersThatAreNoCharacters) {
  EXPECT_EQ(unescape_html("&#0;&#xD800;&#1114112;&#99999999999999999999999;"), "\uFFFD\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(unescape_html("&#x80;&#150;"), "€–") << "Windows-1252";
  EXPECT_EQ(unescape_html("a&#11;&#127;&#xFFFE;&#xFDD0;b"), "ab");
  EXPECT_EQ(unescape_html("&#; &#x; &#xg;"), "&#; &#x; &#xg;");
  EXPECT_EQ(unescape_html("&#65 &#65"), "A A");
}

TEST(ClipCaption, CleaningUnescapesTwiceCollapsesSpaceAndLowers) {
  EXPECT_EQ(clean_clip_caption("  Tom &amp;amp; Jerry\t\n\u3000\u00A0\u2028X\u001C "), "tom & jerry x");
  EXPECT_EQ(clean_clip_caption("ΟΔΟΣ ΣΑΣ Σ"), "οδος σας σ");
  EXPECT_EQ(clean_clip_caption("İSTANBUL ÉCOLE"), "i̇stanbul école");
  EXPECT_EQ(clean_clip_caption(""), "");
  EXPECT_EQ(clean_clip_caption(" \n"), "");
  EXPECT_THAT(testing::message_of<DataError>([] { clean_clip_caption("ab\xFF"); }), HasSubstr("byte 2"));
}

TEST(ClipCaption, TypographyIsMadePlainAsByFtfy) {
  EXPECT_EQ(clean_clip_caption("“Don’t” ‘x’"), "\"don't\" 'x'");
  EXPECT_EQ(clean_clip_caption("ＦＵＬＬ ﬁne oﬃce ｶﾞ ŉ ǆ"), "full fine office ガ 'n dž");
  EXPECT_EQ(clean_clip_caption("e\u0301te\u0301 n\u0303"), "été ñ");
  EXPECT_EQ(clean_clip_caption("a\u0001b\uFEFFc\u007F"), "abc");
  EXPECT_EQ(clean_clip_caption("&ldquo;x&amp;rdquo;"), "\"x\"");
  EXPECT_EQ(clean_clip_caption("<b>&ldquo;x"), "<b>“x") << "ftfy leaves references in HTML alone";
}

TEST(ClipCaption, WordsAreLetterRunsSingleNumbersAndRunsOfTheRest) {
  EXPECT_THAT(split_clip_words("they're 1990s, &c..."),
              ElementsAre("they", "'re", "1", "9", "9", "0", "s", ",", "&", "c", "..."));
  EXPECT_THAT(split_clip_words("i'll've don't 'x"), ElementsAre("i", "'ll", "'ve", "don", "'t", "'", "x"));
  EXPECT_THAT(split_clip_words("кот熊½Ⅷ👨‍👩‍👧"),
              ElementsAre("кот熊", "½", "Ⅷ", "👨‍👩‍👧"));
  EXPECT_THAT(split_clip_words("e\u0301t"), ElementsAre("e", "\u0301", "t")) << "a mark is no letter";
  EXPECT_THAT(split_clip_words(""), IsEmpty());
}

}  // namespace
}  // namespace dalle::text

#include "dalle/data/captions.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace dalle::data {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

TEST(Captions, OnePerLineWithoutEmptyOnes) {
  EXPECT_THAT(parse_caption_lines("a cat\r\n\n  two words \n \nlast").captions,
              ElementsAre("a cat", "two words", "last"));
  EXPECT_THAT(parse_caption_lines("\xEF\xBB\xBF"
                                  "first")
                  .captions,
              ElementsAre("first"));
  EXPECT_THAT(parse_caption_lines("").captions, IsEmpty());
}

TEST(Captions, NamesTheByteThatIsNotUtf8) {
  const auto parsed = parse_caption_lines("fine\nbad \xE9t\xE9");
  EXPECT_THAT(parsed.problem, HasSubstr("byte 9"));
  EXPECT_THAT(parsed.captions, IsEmpty());
  EXPECT_THAT(parse_caption_json("{\"caption\": \"\xFF\"}").problem, HasSubstr("byte 13"));
}

TEST(Captions, JsonListOrString) {
  EXPECT_THAT(parse_caption_json(R"({"captions": ["one", " ", "two"], "caption": "unused"})").captions,
              ElementsAre("one", "two"));
  EXPECT_THAT(parse_caption_json(R"({"caption": "é"})").captions, ElementsAre("é"));
  EXPECT_THAT(parse_caption_json(R"({"caption": null, "width": 3})").captions, IsEmpty());
  EXPECT_EQ(parse_caption_json(R"({"caption": null})").problem, "");
}

TEST(Captions, RefusesOtherJson) {
  for (const char* text : {"", "{", "[1]", R"({"caption": 3})", R"({"captions": "x"})", R"({"captions": ["a", 1]})"}) {
    const auto parsed = parse_caption_json(text);
    EXPECT_NE(parsed.problem, "") << text;
    EXPECT_THAT(parsed.captions, IsEmpty()) << text;
  }
}

}  // namespace
}  // namespace dalle::data

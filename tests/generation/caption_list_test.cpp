#include "dalle/generation/caption_list.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "dalle/core/error.h"
#include "dalle/core/files.h"
#include "support/temp_directory.h"
#include "support/thrown_message.h"

namespace dalle::generation {
namespace {

using dalle::testing::message_of;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::SizeIs;

class CaptionList : public ::testing::Test {
 protected:
  std::filesystem::path file(const std::string& content) const {
    write_file(place_ / "captions.txt", content);
    return place_ / "captions.txt";
  }
  std::string error(const std::vector<std::string>& given, const std::string& content) const {
    return message_of<ConfigError>([&] { read_captions(given, file(content)); });
  }
  dalle::testing::TempDirectory place_{"captions"};
};

TEST_F(CaptionList, IsWhatIsGivenAndTheLinesOfTheFile) {
  EXPECT_THAT(read_captions({"a", "b c"}, {}), ElementsAre("a", "b c"));
  EXPECT_THAT(read_captions({"a"}, file("\xEF\xBB\xBF"
                                        "first\r\n\n  \nzwölf Boxkämpfer\nlast")),
              ElementsAre("a", "first", "zwölf Boxkämpfer", "last"));
}

TEST_F(CaptionList, NamesTheLineOfWhatIsNoText) {
  EXPECT_THAT(error({}, std::string("good\nb\0d\n", 9)),
              AllOf(HasSubstr("captions.txt:2"), HasSubstr("NUL byte at byte 2")));
  EXPECT_THAT(error({}, "good\nfine\ncaf\xE9\n"),
              AllOf(HasSubstr("captions.txt:3"), HasSubstr("at byte 4"), HasSubstr("iconv")));
}

TEST_F(CaptionList, RefusesWhatHoldsNone) {
  EXPECT_THAT(error({"given"}, "\n \n"), HasSubstr("without any caption"));
  EXPECT_THAT(error({" "}, "good\n"), AllOf(HasSubstr("--caption"), HasSubstr("empty")));
  // No-break and ideographic spaces, one of no width, a soft hyphen, a lone direction mark.
  for (const std::string nothing : {"\u00A0", "\u3000", "\u200B", "\u00AD \u200F"}) {
    EXPECT_THAT(error({nothing}, "good\n"), HasSubstr("an empty one")) << nothing.size();
    EXPECT_THAT(read_captions({}, file("a\n" + nothing + "\nb")), ElementsAre("a", "b"));
  }
  // Format characters within a text are part of it: this is a family.
  EXPECT_THAT(read_captions({"\U0001F468\u200D\U0001F469"}, {}), SizeIs(1));
}

TEST_F(CaptionList, RefusesWhatIsTooLongForACaption) {
  std::string ants;
  for (int i = 0; i < 4096; ++i) ants += "蟻";
  EXPECT_THAT(read_captions({ants}, {}), ElementsAre(ants)) << "characters count, not bytes";
  EXPECT_THAT(
      error({ants + "!"}, "good\n"),
      AllOf(HasSubstr("--caption: expected a caption of at most 4096 characters, got 4097"), HasSubstr("hint")));
  EXPECT_THAT(error({}, "good\n" + std::string(10'000, 'x') + "\n"),
              AllOf(HasSubstr("captions.txt:2: expected a caption of at most 4096"), HasSubstr("got 10000")));
}

TEST(Shortened, CutsBetweenCharacters) {
  EXPECT_EQ(shortened(std::string(80, 'x')), std::string(80, 'x'));
  EXPECT_EQ(shortened(std::string(81, 'x')), std::string(77, 'x') + "...");
  std::string ants;
  for (int i = 0; i < 40; ++i) ants += "蟻";  // three bytes each
  EXPECT_EQ(shortened(ants), ants.substr(0, 75) + "...");
  EXPECT_EQ(shortened("x" + ants), "x" + ants.substr(0, 75) + "...");
}

}  // namespace
}  // namespace dalle::generation

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

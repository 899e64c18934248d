// Fields written once: every type loads, dumps and comes back; what is wrong is named with its place.
#include "dalle/config/fields.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "dalle/core/files.h"
#include "support/temp_directory.h"

namespace dalle::config {

enum class Color { kRed, kDarkBlue };

}  // namespace dalle::config

namespace dalle {
template <>
struct EnumNames<config::Color> {
  static constexpr EnumName<config::Color> values[] = {{config::Color::kRed, "red"},
                                                       {config::Color::kDarkBlue, "dark_blue"}};
};
}  // namespace dalle

namespace dalle::config {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

struct Tar {
  static constexpr std::string_view kType = "tar";
  std::filesystem::path path;
  int64_t shards = 1;
  static void visit_fields(auto& self, auto&& field) {
    field("path", self.path, "the file");
    field("shards", self.shards, "how many", {.min = 1, .unit = "files"});
  }
};

struct Folder {
  static constexpr std::string_view kType = "folder";
  std::string pattern = "*.png";
  static void visit_fields(auto& self, auto&& field) { field("pattern", self.pattern, "which pictures"); }
};

struct Inner {
  double lr = 1e-4;
  std::optional<double> clip;
  std::vector<int64_t> milestones{1, 2};
  static void visit_fields(auto& self, auto&& field) {
    field("lr", self.lr, "learning rate", {.min = 0, .max = 10, .unit = "per step", .changeable = true});
    field("clip", self.clip, "gradient norm", {.min = 0});
    field("milestones", self.milestones, "steps", {.min = 0, .changeable = true});
  }
  void validate(const std::string& place) const {
    if (lr > 5) throw ConfigError(Problem{place, "lr below 5", std::to_string(lr), ""});
  }
};

struct Whole {
  bool flag = false;
  int small = 3;
  int64_t number = 7;
  double real = 0.1;
  std::string text = "plain";
  std::filesystem::path file;
  Color color = Color::kRed;
  Inner inner;
  std::optional<Inner> extra;
  std::vector<Inner> many;
  std::vector<Color> colors;
  std::vector<std::string> names;
  std::variant<Tar, Folder> source;
  static void visit_fields(auto& self, auto&& field) {
    field("flag", self.flag, "a switch");
    field("small", self.small, "a small number");
    field("number", self.number, "a number", {.unit = "steps", .changeable = true});
    field("real", self.real, "a real number");
    field("text", self.text, "a text");
    field("file", self.file, "a file");
    field("color", self.color, "a colour");
    field("inner", self.inner, "a section");
    field("extra", self.extra, "a section or nothing");
    field("many", self.many, "sections");
    field("colors", self.colors, "colours");
    field("names", self.names, "texts");
    field("source", self.source, "where pictures come from");
  }
};

constexpr const char* kEverything = R"(flag: true
small: -4
number: 1_200_000
real: 2.5e-3
text: "two words"
file: data/x.tar
color: dark_blue
inner:
  lr: 3
  clip: 0.5
  milestones: [5, 1e3]
extra:
  lr: 0.25
many:
  - lr: 1
  - clip: 2
colors: [red, dark_blue, red]
names: [a, "1", "", two words]
source:
  type: folder
  pattern: "*.jpg"
)";

template <class T = Whole>
T load_text(const std::string& yaml) {
  return load_config<T>(parse_yaml(yaml, "/configs/c.yaml"));
}

template <class T = Whole>
std::string refusal(const std::string& yaml) {
  try {
    load_text<T>(yaml);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "accepted";
}

std::string dumped(const Whole& value) { return emit_yaml(dump(value)); }

TEST(Fields, EveryTypeIsLoaded) {
  const Whole whole = load_text(kEverything);
  EXPECT_TRUE(whole.flag);
  EXPECT_EQ(whole.small, -4);
  EXPECT_EQ(whole.number, 1'200'000);
  EXPECT_EQ(whole.real, 2.5e-3);
  EXPECT_EQ(whole.text, "two words");
  EXPECT_EQ(whole.file, "/configs/data/x.tar");
  EXPECT_EQ(whole.color, Color::kDarkBlue);
  EXPECT_EQ(whole.inner.lr, 3);
  EXPECT_EQ(whole.inner.clip, 0.5);
  EXPECT_THAT(whole.inner.milestones, ElementsAre(5, 1000));
  ASSERT_TRUE(whole.extra.has_value());
  EXPECT_EQ(whole.extra->lr, 0.25);
  EXPECT_FALSE(whole.extra->clip.has_value());
  ASSERT_EQ(whole.many.size(), 2U);
  EXPECT_EQ(whole.many[0].lr, 1);
  EXPECT_EQ(whole.many[1].lr, 1e-4);
  EXPECT_EQ(whole.many[1].clip, 2);
  EXPECT_THAT(whole.colors, ElementsAre(Color::kRed, Color::kDarkBlue, Color::kRed));
  EXPECT_THAT(whole.names, ElementsAre("a", "1", "", "two words"));
  EXPECT_EQ(std::get<Folder>(whole.source).pattern, "*.jpg");
}

TEST(Fields, DumpComesBackAndIsComplete) {
  for (const std::string yaml : {kEverything, "", "source: {type: tar, path: x.tar}\n"}) {
    const std::string text = dumped(load_text(yaml));
    EXPECT_EQ(dumped(load_text(text)), text);
    for (const char* key : {"flag:", "small:", "real:", "milestones:", "extra:", "many:", "colors:", "type:"}) {
      EXPECT_THAT(text, HasSubstr(key)) << yaml;
    }
  }
  EXPECT_NE(dumped(load_text(kEverything)), dumped(load_text("")));
}

TEST(Fields, WhatIsNotGivenKeepsItsDefault) {
  const Whole whole = load_text("inner:\n  clip: 1\nextra:\n");
  EXPECT_EQ(whole.inner.lr, 1e-4);
  EXPECT_THAT(whole.inner.milestones, ElementsAre(1, 2));
  EXPECT_FALSE(whole.extra.has_value());
  EXPECT_EQ(whole.text, "plain");
  EXPECT_EQ(dumped(load_text("inner:\n")), dumped(Whole{}));                     // an empty section
  EXPECT_TRUE(load_text("inner: {milestones: []}\n").inner.milestones.empty());  // a list replaces its default
}

TEST(Fields, DoublesSurviveExactly) {
  for (const double value : {0.1, 1.0 / 3, 1e-300, 6.6, 4.5e-4, 1e22, -0.0, 123456789.123456789, 5e-324}) {
    Whole whole;
    whole.real = value;
    const double back = load_text(dumped(whole)).real;
    EXPECT_EQ(back, value);
    EXPECT_EQ(std::signbit(back), std::signbit(value));
  }
}

TEST(Fields, TextsSurviveExactly) {
  for (const char* value :
       {"", "null", "~", "true", "1e-4", " spaces ", "a: b", "#", "line\nbreak", "\"quoted\"", "\xc3\xa4"}) {
    Whole whole;
    whole.text = value;
    whole.names = {value, "x"};
    const Whole back = load_text(dumped(whole));
    EXPECT_EQ(back.text, value);
    EXPECT_THAT(back.names, ElementsAre(value, "x"));
  }
}

TEST(Fields, PathsAreRelativeToTheConfigFile) {
  EXPECT_EQ(load_text("file: ../data/./x\n").file, "/data/x");
  EXPECT_EQ(load_text("file: /abs/x\n").file, "/abs/x");
  EXPECT_TRUE(load_text("file: \"\"\n").file.empty());
  EXPECT_EQ(std::get<Tar>(load_text("source: {type: tar, path: a.tar}\n").source).path, "/configs/a.tar");
  Node root = parse_yaml("file: a\n", "/configs/c.yaml");
  apply_set(root, "file=b");  // a flag is relative to where the user is
  EXPECT_EQ(load_config<Whole>(root).file, std::filesystem::current_path() / "b");

  const testing::TempDirectory scratch("config-fields");
  write_file(scratch / "c.yaml", "file: data/x\n");
  EXPECT_EQ(load_config_file<Whole>(scratch / "c.yaml").file, scratch / "data/x");
}

TEST(Fields, Numbers) {
  EXPECT_EQ(load_text("real: 1e-4\n").real, 1e-4);
  EXPECT_EQ(load_text("real: 3\n").real, 3);
  EXPECT_EQ(load_text("real: -.5\n").real, -0.5);
  EXPECT_EQ(load_text("number: 1e6\n").number, 1'000'000);
  EXPECT_EQ(load_text("number: 2.5e1\n").number, 25);
  EXPECT_EQ(load_text("number: -12\n").number, -12);
  EXPECT_EQ(load_text("number: 9223372036854775807\n").number, INT64_MAX);
  for (const char* bad :
       {"many", "1.5", "1e-1", "\"3\"", "0x10", "", "1 2", "9223372036854775808", "1e30", "true", "[1]", "."}) {
    EXPECT_THAT(refusal(std::string("number: ") + bad + "\n"),
                HasSubstr("/configs/c.yaml:1 (number): expected an integer"))
        << bad;
  }
  for (const char* bad : {"many", "\"3\"", "1e", "1e400", "nan", ".inf", "inf", "1.2.3", "", "{a: 1}"}) {
    EXPECT_THAT(refusal(std::string("real: ") + bad + "\n"), HasSubstr("(real): expected a number")) << bad;
  }
  EXPECT_THAT(refusal("small: 3000000000\n"), HasSubstr("fits 32 bits"));
  EXPECT_THAT(refusal("number: many\n"), HasSubstr("got 'many'"));
}

TEST(Fields, WrongTypesAreNamedWithPlaceAndPath) {
  EXPECT_THAT(refusal("a: 1\n"), HasSubstr("unknown key 'a'"));
  for (const char* bad : {"yes", "True", "1", "\"true\"", ""}) {
    EXPECT_THAT(refusal(std::string("flag: ") + bad + "\n"), HasSubstr("(flag): expected true or false")) << bad;
  }
  EXPECT_THAT(refusal("\ninner: 3\n"), HasSubstr("c.yaml:2 (inner): expected a section"));
  EXPECT_THAT(refusal("inner: [1]\n"), HasSubstr("(inner): expected a section"));
  EXPECT_THAT(refusal("many: {lr: 1}\n"), HasSubstr("(many): expected a list"));
  EXPECT_THAT(refusal("names: x\n"), HasSubstr("(names): expected a list"));
  EXPECT_THAT(refusal("names: [[x]]\n"), HasSubstr("(names[0]): expected a text"));
  EXPECT_THAT(refusal("text: [x]\n"), HasSubstr("(text): expected a text"));
  EXPECT_THAT(refusal("many:\n  - lr: 1\n  - lr: x\n"), HasSubstr("c.yaml:3 (many[1].lr): expected a number, got 'x'"));
  EXPECT_THAT(refusal("[1, 2]\n"), HasSubstr("expected a section"));
}

TEST(Fields, EnumsSayTheirNames) {
  EXPECT_THAT(refusal("color: blue\n"), HasSubstr("(color): expected one of: red, dark_blue, got 'blue'"));
  EXPECT_THAT(refusal("colors: [red, Red]\n"), HasSubstr("(colors[1]): expected one of"));
  EXPECT_THAT(refusal("color: [red]\n"), HasSubstr("expected one of"));
}

TEST(Fields, RangesAreHeldAlsoInsideListsAndOptionals) {
  EXPECT_THAT(refusal("inner:\n  lr: -1\n"),
              HasSubstr("c.yaml:2 (inner.lr): expected a number >= 0 and <= 10, got '-1'"));
  EXPECT_THAT(refusal("inner: {lr: 11}\n"), HasSubstr("<= 10"));
  EXPECT_EQ(load_text("inner: {lr: 0}\n").inner.lr, 0);  // both ends belong to the range
  EXPECT_THAT(refusal("inner: {clip: -0.5}\n"), HasSubstr("(inner.clip): expected a number >= 0"));
  EXPECT_THAT(refusal("inner: {milestones: [1, -2]}\n"), HasSubstr("(inner.milestones[1]): expected a number >= 0"));
  EXPECT_THAT(refusal("source: {type: tar, shards: 0}\n"), HasSubstr("(source.shards): expected a number >= 1"));
}

TEST(Fields, UnknownKeysNameTheNearest) {
  EXPECT_THAT(refusal("\nnumbr: 3\n"),
              AllOf(HasSubstr("/configs/c.yaml:2: unknown key 'numbr'"), HasSubstr("did you mean 'number'?")));
  EXPECT_THAT(refusal("inner:\n  lr: 1\n  milestone: []\n"),
              AllOf(HasSubstr("c.yaml:3: unknown key 'inner.milestone'"), HasSubstr("did you mean 'milestones'?")));
  EXPECT_THAT(refusal("many: [{lrr: 1}]\n"), AllOf(HasSubstr("'many[0].lrr'"), HasSubstr("'lr'")));
  EXPECT_THAT(refusal("source: {type: tar, pattern: x}\n"),
              AllOf(HasSubstr("unknown key 'source.pattern'"), HasSubstr("known keys here: path, shards")));
}

TEST(Fields, CrossFieldRulesGetThePlace) {
  EXPECT_THAT(refusal("\ninner: {lr: 6}\n"), HasSubstr("/configs/c.yaml:2 (inner): expected lr below 5"));
  EXPECT_THAT(refusal("many: [{lr: 1}, {lr: 6}]\n"), HasSubstr("(many[1]): expected lr below 5"));
  EXPECT_THAT(refusal<Inner>("lr: 6\n"), HasSubstr("/configs/c.yaml:1: expected lr below 5"));
}

TEST(Fields, VariantsAreChosenByType) {
  const auto tar = load_text("source: {shards: 3, type: tar}\n");
  EXPECT_EQ(std::get<Tar>(tar.source).shards, 3);
  EXPECT_THAT(dumped(tar), HasSubstr("source:\n  type: tar"));
  EXPECT_THAT(refusal("source: {path: x}\n"), HasSubstr("(source): expected a key 'type', one of: tar, folder"));
  EXPECT_THAT(refusal("source: {type: zip}\n"), HasSubstr("(source.type): expected one of: tar, folder, got 'zip'"));
  EXPECT_THAT(refusal("source: x\n"), HasSubstr("(source): expected a section with a key 'type'"));
}

TEST(Fields, SetReachesEveryField) {
  Node root = dump(load_text(kEverything));
  for (const char* set : {"inner.lr=2", "many[1].clip=3", "many[2].lr=4", "inner.milestones[0]=9", "color=red",
                          "extra=null", "source.pattern=x", "names=[q]"}) {
    apply_set(root, set);
  }
  const Whole whole = load_config<Whole>(root);
  EXPECT_EQ(whole.inner.lr, 2);
  ASSERT_EQ(whole.many.size(), 3U);
  EXPECT_EQ(whole.many[1].clip, 3);
  EXPECT_EQ(whole.many[2].lr, 4);
  EXPECT_THAT(whole.inner.milestones, ElementsAre(9, 1000));
  EXPECT_EQ(whole.color, Color::kRed);
  EXPECT_FALSE(whole.extra.has_value());
  EXPECT_EQ(std::get<Folder>(whole.source).pattern, "x");
  EXPECT_THAT(whole.names, ElementsAre("q"));
  apply_set(root, "inner.lr=lots");
  try {
    load_config<Whole>(root);
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), HasSubstr("--set inner.lr=lots (inner.lr): expected a number, got 'lots'"));
  }
}

std::string row_text(const FieldDescription& row) {
  return row.path + "|" + row.type + "|" + row.unit + "|" + row.default_value + "|" + row.help +
         (row.changeable ? "|*" : "");
}

TEST(Describe, ListsEveryFieldWithTypeUnitDefaultAndHelp) {
  std::vector<std::string> rows;
  for (const auto& row : describe<Whole>()) rows.push_back(row_text(row));
  EXPECT_THAT(
      rows,
      ElementsAre("flag|bool||false|a switch", "small|int||3|a small number", "number|int|steps|7|a number|*",
                  "real|float||0.1|a real number", "text|string||plain|a text", "file|path|||a file",
                  "color|red|dark_blue||red|a colour", "inner.lr|float|per step|1e-04|learning rate|*",
                  "inner.clip|float or null||null|gradient norm", "inner.milestones|list of int||[1, 2]|steps|*",
                  "extra|section or null||null|a section or nothing", "extra.lr|float|per step|1e-04|learning rate|*",
                  "extra.clip|float or null||null|gradient norm", "extra.milestones|list of int||[1, 2]|steps|*",
                  "many|list of sections||[]|sections", "many[].lr|float|per step|1e-04|learning rate|*",
                  "many[].clip|float or null||null|gradient norm", "many[].milestones|list of int||[1, 2]|steps|*",
                  "colors|list of red|dark_blue||[]|colours", "names|list of string||[]|texts",
                  "source.type|tar|folder||tar|where pictures come from", "source.path|path|||the file (type tar)",
                  "source.shards|int|files|1|how many (type tar)",
                  "source.pattern|string||*.png|which pictures (type folder)"));
}

TEST(Describe, ChangeableByPath) {
  const auto rows = describe<Whole>();
  for (const char* path :
       {"number", "inner.lr", "many[3].lr", "many[0].milestones[2]", "extra.milestones", "inner.milestones[10]"}) {
    EXPECT_TRUE(is_changeable(rows, path)) << path;
  }
  for (const char* path : {"flag", "inner.clip", "many[0].clip", "many", "names[0]", "source.type", "none", "inner"}) {
    EXPECT_FALSE(is_changeable(rows, path)) << path;
  }
}

}  // namespace
}  // namespace dalle::config
